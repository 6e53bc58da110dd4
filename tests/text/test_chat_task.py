"""Conversations as a task: what is brought is what is trained, in the template that is saved."""

import json

import pytest
import torch
import transformers
from chat_formats import tokenizer_with

from featherweight.errors import ConfigError
from featherweight.models.templates import encode_conversation
from featherweight.text.chat_task import ChatConfig, ChatTask
from featherweight.text.conversation import Conversation, Turn

SMALL = {"model": "tiny", "template": "chatml", "held_out": 0.3, "max_tokens": 400}


def chat(*texts, **more):
    return {
        "messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)],
        **more,
    }


def write(folder, rows, name="chats.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def build(path, **options):
    return ChatTask(ChatConfig.parse({**SMALL, "data": path, **options}), seed=0)


def trained_texts(task, split="train"):
    """Return what the loss counts, as text, one for each run of labels."""
    found = []
    for row in task._rows[split]:
        run = []
        for label in [*row.labels, -100]:
            if label != -100:
                run.append(label)
            elif run:
                found.append(task.tokenizer.decode(run))
                run = []
    return found


@pytest.fixture
def chats(tmp_path):
    return write(tmp_path, [chat(f"q{n}", f"    a{n}\n\n#### b", f"r{n}", f"c{n}") for n in range(12)])


def test_every_answer_is_learnt_whole_and_nothing_else(chats):
    task = build(chats)
    said = trained_texts(task) + trained_texts(task, "held_out")
    wanted = [text for n in range(12) for text in (f"    a{n}\n\n#### b<|im_end|>", f"c{n}<|im_end|>")]
    assert sorted(said) == sorted(wanted)
    assert task.describe()["train_tokens"] == sum(len(task.tokenizer(t)["input_ids"]) for t in trained_texts(task))


def test_the_last_answer_alone_on_request(chats):
    task = build(chats, train_on="last")
    assert all(text.startswith("c") for text in trained_texts(task))


def test_long_conversations_lose_whole_turns_and_the_report_counts_them(tmp_path):
    path = write(tmp_path, [chat(f"q{n}", "a" * 20, "r", "b" * 200) for n in range(8)] + [chat("x" * 300, "y")] * 2)
    task = build(path, max_tokens=120)
    facts = task.describe()
    assert facts["train_cut_rows"] + facts["held_out_cut_rows"] == 8
    assert facts["train_cut_turns"] + facts["held_out_cut_turns"] == 16
    assert facts["train_left_out_rows"] + facts["held_out_left_out_rows"] == 2
    assert set(trained_texts(task)) == {"a" * 20 + "<|im_end|>"}
    short = write(tmp_path, [chat("q", "a")], "short.jsonl")
    with pytest.raises(ConfigError, match="leaves out all 10 conversations"):
        build(path, max_tokens=120, long_rows="leave_out", held_out=short)
    with pytest.raises(ConfigError, match=r"chats.jsonl, line 1: 3\d\d tokens are more than max_tokens=120"):
        build(path, max_tokens=120, long_rows="refuse")


def test_conversations_that_begin_alike_stay_on_one_side(tmp_path):
    path = write(tmp_path, [chat(f"q{n % 5}", f"a{n}") for n in range(30)])
    task = build(path)
    sides = [{text[1] for text in trained_texts(task, split)} for split in ("train", "held_out")]
    assert sum(map(len, sides)) >= 2 and len(trained_texts(task)) % 6 == 0


def test_packed_rows_lose_no_token_and_do_not_see_each_other(chats):
    task, plain = build(chats, pack=True), build(chats)
    assert sorted(trained_texts(task)) == sorted(trained_texts(plain))
    rows = task._rows["train"]
    assert len(rows) < len(plain._rows["train"]) and max(len(row.ids) for row in rows) <= 400
    assert any(len(row.starts) > 1 for row in rows)
    model = task.build_model().double()

    def total(of):
        batches = of.batches("train", micro_batch_size=1, seed=0)
        sums = [of.loss(model, next(batches)) for _ in range(len(of._rows["train"]))]
        return sum(loss.item() for loss, _ in sums), sum(count for _, count in sums)

    (packed_loss, packed_count), (plain_loss, plain_count) = total(task), total(plain)
    assert packed_count == plain_count
    # The loss is a float32 sum of a few hundred terms; seeing a neighbour changes it in the second digit.
    assert packed_loss == pytest.approx(plain_loss, rel=1e-5)


def test_the_template_that_trained_is_saved_with_its_stop_tokens(tmp_path, chats):
    task = build(chats, template="alpaca")
    task.save_model(task.build_model(), tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    encoded = encode_conversation(tokenizer, messages)
    assert tokenizer.chat_template == task.tokenizer.chat_template
    assert settings.eos_token_id == encoded.ids[encoded.answer_spans[-1][1] - 1] == tokenizer.eos_token_id
    assert "### Response:\na" in tokenizer.apply_chat_template(messages, tokenize=False)


def test_generation_stops_where_the_template_ends_an_answer(tmp_path, chats):
    tokenizer = tokenizer_with("llama3")
    configuration = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    transformers.LlamaForCausalLM(configuration).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    task = build(chats, model=str(tmp_path / "base"), template=None)
    ends = task.build_model().generation_config.eos_token_id
    assert ends == [tokenizer.convert_tokens_to_ids("<|eot_id|>"), tokenizer.eos_token_id]


def test_other_kinds_of_rows_name_their_task(tmp_path):
    path = write(tmp_path, [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(4)])
    with pytest.raises(ConfigError, match="rows of the kind 'preference'.*task preference"):
        build(path)
    with pytest.raises(ConfigError, match="kind 'document'.*task text"):
        build(write(tmp_path, [{"text": "t"}], "t.jsonl"))


def test_what_does_not_fit_together_is_one_sentence(tmp_path, chats):
    with pytest.raises(ConfigError, match="max_tokens=99999 is longer than max_position_embeddings"):
        build(chats, max_tokens=99999)
    with pytest.raises(ConfigError, match="leaves out all .* conversations of one split or source, the longest of"):
        build(chats, max_tokens=8)
    with pytest.raises(ConfigError, match="all begin alike"):
        build(write(tmp_path, [chat("q", "a")] * 3, "alike.jsonl"))
    with pytest.raises(ConfigError, match="has no chat template"):
        build(chats, template=None)


def test_the_split_knows_a_conversation_by_its_beginning():
    one = Conversation((Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r")))
    assert one.prompt.turns == one.turns[:2]


def test_a_batch_is_padded_behind_its_end(chats):
    batch = next(build(chats).batches("train", micro_batch_size=3, seed=0))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert "position_ids" not in batch
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])
