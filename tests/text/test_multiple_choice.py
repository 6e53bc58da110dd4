import pytest
import torch
from tiny_models import CROPPED, RECURRENT, VOCABULARY, tiny_model
from torch import nn

from featherweight.errors import ConfigError
from featherweight.models import load_model
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.text.instructions import Instruction, as_cloze, prompt_tokens
from featherweight.text.multiple_choice import evaluate_multiple_choice, option_scores
from featherweight.training.share import Share

ARC = "Choose: What is red? Answer1: a cloud Answer2: blood\n\nAnswer format: answer1/answer2"


class Counting(nn.Module):
    """A causal model that counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.model, self.calls = load_model("tiny").double(), []

    def forward(self, input_ids, **options):
        self.calls.append(tuple(input_ids.shape))
        return self.model(input_ids=input_ids, **options)


def by_hand(model, prompt, tokens):
    """Sum the log-probabilities of tokens one after the other."""
    total = 0.0
    for count in range(len(tokens)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *tokens[:count]]]), use_cache=False).logits[0, -1]
        total += logits.double().log_softmax(-1)[tokens[count]].item()
    return total


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("responses", [["answer1", "answer2"], ["blood", "a cloud of rain", "x"]])
def test_scores_are_log_probabilities_of_the_responses(responses, per_token):
    model, tokenizer = Counting().eval(), byte_tokenizer()
    prompt = prompt_tokens("Q", tokenizer)

    scores = option_scores(model, tokenizer, prompt, responses, per_token=per_token)

    assert len(model.calls) == 1
    encoded = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in responses]
    expected = [by_hand(model.model, prompt, tokens) / (len(tokens) if per_token else 1) for tokens in encoded]
    if responses[0] == "answer1":
        # Equal beginnings are left out: they add the same to each.
        differences = scores - scores[0]
        expected = [(one - expected[0]) * (len(encoded[0]) if per_token else 1) for one in expected]
        torch.testing.assert_close(differences, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    else:
        # Norms of the model are float32 inside.
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def letters(text, add_special_tokens=True):
    """A tokenizer of few tokens: one for each letter."""
    return {"input_ids": [ord(one) % VOCABULARY for one in text]}


@pytest.mark.parametrize("name", [*CROPPED, *RECURRENT])
def test_the_prompt_is_read_once_and_each_option_behind_it(name):
    # Options shorter and longer than the sliding windows. Mutation: rows of the cache that are not repeated fail.
    model, prompt, responses = tiny_model(name), [7, 3, 60, 12, 5, 9, 2, 11, 40], ["rain", "a wet, grey cloud", "sun"]
    together = option_scores(model, letters, prompt, responses, one_pass=True)
    read = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, _: read.append(args[0].numel()))
    try:
        scores = option_scores(model, letters, prompt, responses)
    finally:
        hook.remove()
    torch.testing.assert_close(scores, together, rtol=0, atol=1e-4 * together.abs().max().item())
    assert read == [9, 3 * 17]


def test_virtual_tokens_of_an_adapter_are_read_once_with_each_option():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(load_model("tiny"), config).eval()
    scores = option_scores(model, byte_tokenizer(), [7, 3, 60], ["rain", "a wet, grey cloud"])
    by_hand_scores = [by_hand(model, [7, 3, 60], list(one.encode())) for one in ("rain", "a wet, grey cloud")]
    torch.testing.assert_close(scores, torch.tensor(by_hand_scores, dtype=torch.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cloze", [False, True])
def test_a_model_that_was_told_the_answers_is_right_and_its_opposite_wrong(cloze):
    tokenizer = byte_tokenizer()
    model = load_model("tiny").train()
    right = Instruction(ARC, "the correct answer is answer2", "answer2")
    example = as_cloze(right) if cloze else right
    told = example.output
    prompt = prompt_tokens(example.instruction, tokenizer)
    ids = torch.tensor([[*prompt, *tokenizer(told, add_special_tokens=False)["input_ids"]]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrong = (
        Instruction(ARC, "", "answer1")
        if not cloze
        else Instruction(example.instruction, "a cloud", "answer1", example.texts)
    )

    assert evaluate_multiple_choice(model, tokenizer, [example]) == {"accuracy": 1.0, "questions": 1.0, "chance": 0.5}
    assert evaluate_multiple_choice(model, tokenizer, [wrong])["accuracy"] == 0.0
    assert model.training


@pytest.mark.parametrize("examples", [[], [Instruction("2+3?", "5", "5")]])
def test_questions_without_options_are_refused(examples):
    with pytest.raises(ConfigError, match="multiple_choice: .*expected"):
        evaluate_multiple_choice(load_model("tiny"), byte_tokenizer(), examples)


class OneOfTwo(Share):
    """What one of two processes evaluates; the sums are made by the test."""

    def __init__(self, rank):
        super().__init__()
        self._rank, self._size, self.own = rank, 2, ()

    def sums(self, *values):
        self.own = values
        return list(values)


def test_processes_share_the_questions_and_make_equally_many_passes():
    # Three questions on two processes: one of them repeats another's, which does not count. Mutation: each asks all.
    tokenizer, questions = byte_tokenizer(), [Instruction(ARC, "the answer is", answer) for answer in ("answer1",) * 3]
    alone, shares = Counting(), [OneOfTwo(0), OneOfTwo(1)]
    whole = evaluate_multiple_choice(alone, tokenizer, questions)
    models = [Counting(), Counting()]
    for model, share in zip(models, shares, strict=True):
        evaluate_multiple_choice(model, tokenizer, questions, share=share)
    assert [len(model.calls) for model in (alone, *models)] == [3, 2, 2]
    right, count, chance = (one + two for one, two in zip(shares[0].own, shares[1].own, strict=True))
    assert {"accuracy": right / count, "questions": count, "chance": chance / count} == whole
