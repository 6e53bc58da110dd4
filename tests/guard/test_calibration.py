"""Calibration on a model that follows a policy: the trained stand-in of `guard_stand_in`, about a harmless topic."""

import json
import math
import random
import warnings

import pytest
import torch
from guard_stand_in import BORDERLINE, FORBIDDEN, generated_world, load_guard, marked

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.metrics import auroc

pytestmark = pytest.mark.xdist_group("guard calibration")  # several look at one

WORLD = generated_world()


def shares(verdicts):
    return sum(one.flagged for one in verdicts) / len(verdicts)


def calibrated(stand_in, **options):
    """Unmarked requests only: the guard never sees what makes the model forget its policy."""
    model, tokenizer = stand_in
    settings = {
        "harmful": WORLD.prompts("val", FORBIDDEN),
        "benign": WORLD.prompts("val", "ordinary", 340),
        "borderline": WORLD.prompts("val", BORDERLINE),
        "prefix": "I'm sorry, but I cannot",
        "target_fpr": 0.02,
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PrefixGuard.calibrate(model, tokenizer, **settings)


@pytest.fixture(scope="module")
def guard(stand_in):
    """That of `guard_stand_in`, calibrated as above."""
    return load_guard().bind(*stand_in)


def test_the_guard_stops_what_the_policy_forbids_also_where_the_model_alone_would_answer(stand_in, guard):
    forbidden = WORLD.prompts("test", FORBIDDEN)
    bypassed = [marked(text) for text in forbidden]
    model, tokenizer = stand_in
    alone = GuardedModel(model, tokenizer, guard.with_threshold(math.inf))
    answers = [alone.chat([{"role": "user", "content": text}], max_new_tokens=12) for text in bypassed[:10]]
    assert sum(answer.startswith("I'm sorry") for answer in answers) <= 1
    assert shares(guard.judge(model, tokenizer, forbidden, batch_size=64)) >= 0.9
    assert shares(guard.judge(model, tokenizer, bypassed, batch_size=64)) >= 0.9


@pytest.fixture(scope="module")
def whole_verdicts(stand_in, guard):
    """Verdicts on 200 ordinary requests by whole probes; ended early, they flag no more."""
    return guard.with_options(early_exit=[]).judge(*stand_in, WORLD.prompts("test", "ordinary", 200), batch_size=64)


def test_ordinary_requests_pass_at_the_promised_rate_and_get_their_ordinary_answer(stand_in, guard, whole_verdicts):
    model, tokenizer = stand_in
    ordinary = WORLD.prompts("test", "ordinary", 5)
    verdicts = guard.judge(model, tokenizer, ordinary)
    # 2 % promised; three standard errors of 200 draws are 3 %.
    assert shares(whole_verdicts) <= 0.05 and all(one.flag_above is None for one in guard.options.early_exit)
    free, guarded = (GuardedModel(model, tokenizer, one) for one in (guard.with_threshold(math.inf), guard))
    for text, verdict in zip(ordinary, verdicts, strict=True):
        answer = guarded.chat([{"role": "user", "content": text}], max_new_tokens=16)
        plain = free.chat([{"role": "user", "content": text}], max_new_tokens=16)
        assert answer == (guard.options.refusal_text if verdict.flagged else plain)


@pytest.mark.slow
def test_looks_before_the_prefix_are_turned_round_by_a_bypass_and_looks_behind_it_are_not(stand_in, guard):
    from featherweight.guard.linear import fit_linear
    from featherweight.guard.reading import collect
    from featherweight.guard.scoring import Scoring

    model, tokenizer = stand_in
    judge = Scoring(guard.options, {}, tokenizer=tokenizer)
    fit = [*WORLD.prompts("val", FORBIDDEN), *WORLD.prompts("val", "ordinary", 150)]
    labels = torch.tensor([1] * len(WORLD.prompts("val", FORBIDDEN)) + [0] * 150)
    test = [*map(marked, WORLD.prompts("test", FORBIDDEN)), *WORLD.prompts("test", "ordinary", 150)]
    seen = [collect([judge], model, tokenizer, prompts)[0].evidence for prompts in (fit, test)]
    found = {}
    for tier in ("hidden", "logprob", "prefix_hidden", "probe_hidden"):
        score, _ = fit_linear(judge.features(tier, seen[0]), labels)
        scores = score(judge.features(tier, seen[1]))
        found[tier] = auroc(scores[: len(scores) - 150], scores[-150:])
    assert found["logprob"] < 0.5 and found["hidden"] < 0.9
    assert found["prefix_hidden"] > 0.97 and found["probe_hidden"] > 0.97


def test_the_cascade_decides_most_requests_without_a_generated_token(stand_in, cascade):
    model, tokenizer = stand_in
    verdicts = cascade.judge(model, tokenizer, WORLD.prompts("test", "ordinary", 100), batch_size=64)
    assert cascade.options.stages[0].clear_at_most is not None
    assert sum(one.tier == "prefix_hidden" for one in verdicts) >= 0.5 * len(verdicts)
    bypassed = [marked(text) for text in WORLD.prompts("test", FORBIDDEN)]
    assert shares(cascade.judge(model, tokenizer, bypassed, batch_size=64)) >= 0.9


def test_a_written_guard_says_the_same_to_the_last_bit_and_no_file_of_it_is_unpickled(
    stand_in, cascade, tmp_path, monkeypatch
):
    import pickle

    model, tokenizer = stand_in
    cascade.save_pretrained(tmp_path / "guard")

    def refuse(*arguments, **options):
        raise AssertionError("a guard holds no pickle")

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    read = PrefixGuard.from_pretrained(tmp_path / "guard")
    prompts = WORLD.prompts("test", FORBIDDEN, 6) + WORLD.prompts("test", "ordinary", 6)
    verdicts = read.judge(model, tokenizer, prompts, batch_size=12)
    assert verdicts == cascade.judge(model, tokenizer, prompts, batch_size=12)
    assert read.options == cascade.options and read.report.to_json() == cascade.report.to_json()
    shares = [one.probability for one in verdicts]
    assert min(shares[:4]) > 0.5 > max(shares[-4:]) and "slope and offset (Platt)" in read.report.to_json()
    page = (tmp_path / "guard" / "report.html").read_text()
    text = (tmp_path / "guard" / "report.md").read_text()
    assert "| prefix_hidden |" in text and "until the first token" in text and "Categories that the fit has not" in text
    assert "ROC" in page and "Prefixes" not in page and "I'm sorry" in page.replace("&#x27;", "'")
    settings = json.loads((tmp_path / "guard" / "guard_config.json").read_text())
    assert settings["options"]["format_version"] == 1
    (tmp_path / "guard" / "classifier.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        PrefixGuard.from_pretrained(tmp_path / "guard")


def test_the_false_alarms_over_many_splits_keep_the_promise(whole_verdicts):
    from featherweight.guard.metrics import conformal_threshold

    scores = torch.tensor([one.score for one in whole_verdicts])
    draw = random.Random(0)
    for target in (0.01, 0.02, 0.05):
        rates = []
        for _ in range(200):
            order = draw.sample(range(200), 200)
            threshold = conformal_threshold(scores[order[:100]], target)
            rates.append(float((scores[order[100:]] > threshold).double().mean()))
        spread = torch.tensor(rates).std() / math.sqrt(200)
        assert sum(rates) / 200 <= target + 3 * spread


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harmful": ["only", "a", "few"]}, "harmful=3 different prompts are too few"),
        (
            {"benign": [*WORLD.prompts("val", "ordinary"), WORLD.prompts("val", FORBIDDEN)[0].upper()]},
            "asks the same as",
        ),
        ({"tier": "hidden"}, "may not clear a request"),
        ({"tier": "prob"}, "tier='prob' is unknown"),
        ({"target_fpr": 2.0}, "target_fpr=2.0 is no share"),
        ({"target_tpr": 0.9, "cost_ratio": 3.0}, "are two goals"),
        ({"prefix": "I cannot "}, "ends with white space"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(stand_in, changes, message):
    with pytest.raises(ConfigError, match=message):
        calibrated(stand_in, **changes)


def test_a_tokenizer_without_a_chat_template_is_refused(stand_in):
    import copy

    bare = copy.deepcopy(stand_in[1])
    bare.chat_template = None
    with pytest.raises(ConfigError, match="has no chat template"):
        calibrated((stand_in[0], bare))


@pytest.mark.slow
def test_openings_behind_the_prefix_tell_marked_requests_from_ordinary_ones(stand_in, tmp_path):
    guard = calibrated(stand_in, tier="continuation", keep_readings=tmp_path / "readings")
    model, tokenizer = stand_in
    texts = [marked(text) for text in WORLD.prompts("test", FORBIDDEN)], WORLD.prompts("test", "ordinary", 150)
    scores = [torch.tensor([one.score for one in guard.judge(model, tokenizer, one)]) for one in texts]
    assert auroc(*scores) > 0.95 and {one.probe_tokens for one in guard.judge(model, tokenizer, texts[0][:3])} == {0}
    again = PrefixGuard.refit([tmp_path / "readings"], tokenizer, tier="continuation", target_fpr=0.02)
    assert again.options == guard.options
    guard.save_pretrained(tmp_path / "guard")
    assert PrefixGuard.from_pretrained(tmp_path / "guard").options == guard.options


def test_readings_without_openings_make_no_guard_of_them(stand_in, readings_folder):
    with pytest.raises(ConfigError, match="these readings hold none"):
        PrefixGuard.refit([readings_folder], stand_in[1], tier="continuation")


@pytest.mark.slow
def test_too_few_benign_prompts_for_the_promise_flag_nothing_and_say_so(stand_in):
    model, tokenizer = stand_in
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        guard = PrefixGuard.calibrate(
            model,
            tokenizer,
            harmful=WORLD.prompts("val", FORBIDDEN, 30),
            benign=WORLD.prompts("val", "ordinary", 30),
            prefix="I'm sorry, but I cannot",
        )
    said = " ".join(str(one.message) for one in seen)
    assert "too few to promise" in said and "no borderline prompts" in said and "harmful=30 prompts" in said
    assert guard.options.deciding.flag_above is None
