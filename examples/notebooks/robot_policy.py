# %% [markdown]
# # Week 12: a policy learns from demonstrations
#
# Three demonstrations and 60 steps teach a little in seconds; fifty and 15,000 steps (a minute and a half of one core) put nearly every cube into the bin:
# `docs/tutorials/robot_policy.md` is the whole job.

# %%
import featherweight as fw
from featherweight.report import Report
from featherweight.robot.learning.evaluation import evaluate
from featherweight.robot.learning.policy import load_policy
from featherweight.robot.recording.demonstrations import demonstrate, expert_writer

kept = demonstrate(expert_writer("demos"), seeds=range(3))

# %% [markdown]
# ## Train
# `task: {name: robot}` is a task like text: every optimizer of the library takes it. GaLore keeps less than half of AdamW's state.

# %%
recipe = {
    "task": {"name": "robot", "data": "demos", "held_out": 0.34},
    "optimizer": {"name": "galore", "rank": 16, "scale": 1.0, "lr": 2e-3},
    "steps": 60,
    "micro_batch_size": 64,
    "max_grad_norm": None,
    "memory_steps": [],
}
run = fw.train(recipe, out="run", callbacks=[])
before, after = run.summary.before_training["held_out_loss"], run.summary.held_out["held_out_loss"]
print(f"held-out loss {before:.2f} -> {after:.2f}")
assert after < 0.9 * before

# %% [markdown]
# ## Try it
# On a layout that nobody learnt from. With so little training it may well fail; what counts is that it is counted.
# *To do: how many demonstrations does it take until 9 of 10 cubes are placed? Does a larger network help?*

# %%
policy = load_policy("run")
result = evaluate(policy, seeds=[10_000])
low, high = result.interval
print(f"{result.successes} of 1 in the bin (95 %: {low:.2f} to {high:.2f})")

# %%
report = Report("A policy after 60 steps")
report.add_table("Held out", ["", "before", "after"], [["loss (deviations)", before, after]])
report
