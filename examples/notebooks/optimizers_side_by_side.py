# %% [markdown]
# # Optimizers side by side
#
# `fw.compare` trains one recipe with several optimizers: same start, same data, same seed. Here a byte-level Llama reads the documentation of Python
# for a few steps; more steps, another model or your own text are one line each.

# %%
import featherweight as fw

recipe = {
    "task": {
        "name": "text",
        "model": "tiny",
        "weights": "random",
        "corpus": "english",
        "seq_len": 64,
        "max_train_tokens": 20000,
        "max_held_out_tokens": 2000,
    },
    "optimizer": {"name": "galore_8bit", "rank": 32, "lr": 1e-2},
    "compare": {"adamw": {"lr": 3e-3}},
    "steps": 12,
    "micro_batch_size": 4,
    "save_model": False,
}
report = fw.compare(recipe, ["adamw", "galore_8bit"], out="comparison", callbacks=[])
report

# %% [markdown]
# The folder `comparison` holds the same page, a run folder for each optimizer, and every number as JSON.

# %%
table = report.section("Methods")
losses = {row[0]: row[table.columns.index("held-out loss")] for row in table.rows}
losses

# %%
assert losses["adamw"] < losses["before training"] and losses["galore_8bit"] < losses["before training"]
