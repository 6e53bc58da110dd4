"""The tokens that are trained on are those of TRL's SFTTrainer, where TRL can say which those are.

TRL needs marks in a template to find every answer; of a prompt and its completion it finds them under any template.
"""

import pytest
from chat_formats import TEMPLATES, tokenizer_with

from featherweight.models.templates import choose_template, encode_conversation
from featherweight.models.tokenizer import byte_tokenizer

CHATS = [
    [("user", "q"), ("assistant", "a")],
    [("user", "Explain."), ("assistant", "Steps:\n\n#### One\nGo. 🎉")],
    [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "    b")],
]


def messages(chat):
    return [{"role": role, "content": text} for role, text in chat]


def trained_by_trl(tokenizer, rows, folder, **options):
    import datasets
    import transformers
    import trl

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **sizes))
    settings = {"report_to": [], "use_cpu": True, "bf16": False, "max_length": None, "disable_tqdm": True}
    arguments = trl.SFTConfig(str(folder), **settings, **options)
    data = datasets.Dataset.from_list(rows)
    return trl.SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer).train_dataset


def learnt(row):
    return [int(label != -100) for label in row["labels"]]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("template", TEMPLATES)
def test_of_a_prompt_and_its_completion_the_same_tokens_are_learnt(template, tmp_path):
    pytest.importorskip("trl")
    rows = [{"prompt": messages(chat[:-1]), "completion": messages(chat[-1:])} for chat in CHATS]
    tokenizer = tokenizer_with(template)
    theirs = trained_by_trl(tokenizer_with(template), rows, tmp_path)
    for chat, row in zip(CHATS, theirs, strict=True):
        ours = encode_conversation(tokenizer, messages(chat))
        assert list(ours.ids) == row["input_ids"][: len(ours.ids)]
        labels = [int(label != -100) for label in ours.labels([-1])]
        # TRL learns the line break, and the end-of-text token, that stand behind the mark which ends an answer.
        behind = ours.answer_spans[-1][1]
        assert labels[:behind] == learnt(row)[:behind] and sum(labels[behind:]) == 0
        assert tokenizer.decode(row["input_ids"][behind:]) in ("", "\n", "\n<|endoftext|>", "<|endoftext|>")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_of_templates_with_marks_every_answer_is_learnt_as_by_trl(template, tmp_path):
    pytest.importorskip("trl")
    tokenizer = byte_tokenizer()
    choose_template(tokenizer, template)
    theirs = trained_by_trl(
        tokenizer, [{"messages": messages(chat)} for chat in CHATS], tmp_path, assistant_only_loss=True
    )
    for chat, row in zip(CHATS, theirs, strict=True):
        ours = encode_conversation(tokenizer, messages(chat))
        assert list(ours.ids) == row["input_ids"]
        assert [int(label != -100) for label in ours.labels()] == learnt(row)
