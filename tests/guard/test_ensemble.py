import math

import pytest
import torch
from guard_models import random_guard, word_tokenizer
from tiny_models import tiny_model

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.ensemble import GuardEnsemble, open_guard
from featherweight.guard.guarded_model import GuardedModel

PROMPTS = [f"w{index} w{(7 * index) % 50} w1" for index in range(12)]


@pytest.fixture(scope="module")
def members():
    first = random_guard("llama", probe_tokens=2)
    second = random_guard("llama", "prefix_hidden").with_options(prefix_ids=(7, 8), prefix_text="w2 w3")
    return [first, second]


def judged(guard):
    return guard.judge(tiny_model("llama"), word_tokenizer(), PROMPTS)


def test_a_request_is_flagged_if_one_member_flags_it(members):
    each = [judged(one) for one in members]
    found = judged(GuardEnsemble(members))
    assert [one.flagged for one in found] == [a.flagged or b.flagged for a, b in zip(*each, strict=True)]
    assert len({(a.flagged, b.flagged) for a, b in zip(*each, strict=True)}) > 2
    assert [one.probe_tokens for one in found] == [a.probe_tokens + b.probe_tokens for a, b in zip(*each, strict=True)]


def test_the_mean_of_the_scores_has_a_threshold_of_its_own(members):
    each = [judged(one) for one in members]
    means = [(a.score + b.score) / 2 for a, b in zip(*each, strict=True)]
    found = judged(GuardEnsemble(members, "mean", flag_above=sorted(means)[5]))
    assert [one.score for one in found] == pytest.approx(means)
    assert sum(one.flagged for one in found) == 6


def test_a_random_member_judges_each_request_as_it_does_alone(members):
    each = [judged(one) for one in members]
    differing = [place for place, (a, b) in enumerate(zip(*each, strict=True)) if a.score != b.score]
    seen = set()
    for _ in range(4):
        for place, verdict in enumerate(judged(GuardEnsemble(members, "random"))):
            # A batch of other company sums in another order, in float32.
            same = pytest.approx(verdict.score, abs=1e-4)
            places = [index for index, one in enumerate(each) if one[place].score == same]
            assert places
            seen |= set(places) if place in differing else set()
    assert seen == {0, 1}


def test_what_one_member_cannot_judge_is_flagged(members):
    broken = members[1].with_options()
    broken._scoring.scores = {}
    assert all(one.flagged and one.error for one in judged(GuardEnsemble([members[0], broken])))


def test_an_ensemble_is_stored_and_read_back(members, tmp_path):
    for name, ensemble in (
        ("any", GuardEnsemble(members)),
        ("mean", GuardEnsemble(members, "mean", flag_above=0.1)),
        ("never", GuardEnsemble(members, "mean", flag_above=math.inf)),
    ):
        ensemble.save_pretrained(tmp_path / name)
        read = GuardEnsemble.from_pretrained(tmp_path / name).bind(tiny_model("llama"), word_tokenizer())
        assert [(one.flagged, one.score) for one in judged(read)] == [
            (one.flagged, one.score) for one in judged(ensemble)
        ]
    with pytest.raises(ConfigError, match="is not empty"):
        ensemble.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no ensemble"):
        GuardEnsemble.from_pretrained(tmp_path)


def test_what_is_no_ensemble_is_refused(members):
    with pytest.raises(ConfigError, match="members=1 are no ensemble"):
        GuardEnsemble(members[:1])
    with pytest.raises(ConfigError, match="combination='best' is unknown"):
        GuardEnsemble(members, "best")
    with pytest.raises(ConfigError, match="needs members of one stage"):
        GuardEnsemble(members, "mean")


def test_folders_of_guards_are_opened_as_one_and_an_ensemble_keeps_its_rule(members, tmp_path):
    for index, member in enumerate(members):
        member.save_pretrained(tmp_path / "each" / f"guard-{index}")
    GuardEnsemble(members, "random").save_pretrained(tmp_path / "random")
    first, second = (tmp_path / "each" / f"guard-{index}" for index in range(2))
    assert open_guard([first]).members[0].options == members[0].options
    for folders in ([first, second], [tmp_path / "each"]):
        found = open_guard(folders).bind(tiny_model("llama"), word_tokenizer())
        assert found.combination == "any" and judged(found) == judged(GuardEnsemble(members))
    assert open_guard([tmp_path / "random"]).combination == "random"
    with pytest.raises(ConfigError, match="is an ensemble with a rule of its own"):
        open_guard([first, tmp_path / "random"])
    with pytest.raises(CheckpointError, match="holds no guard_config.json"):
        open_guard([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="folders=.. are none"):
        open_guard([])


def test_an_ensemble_stands_in_front_of_a_chat(members):
    ensemble = GuardEnsemble(members)
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    guarded = GuardedModel(model, tokenizer, ensemble)
    expected = judged(ensemble)
    for text, verdict in list(zip(PROMPTS, expected, strict=True))[:6]:
        answer = guarded.chat([{"role": "user", "content": text}], max_new_tokens=3)
        assert guarded.verdict.flagged == verdict.flagged
        assert not verdict.flagged or answer == members[0].options.refusal_text


@pytest.mark.parametrize("combination", ["any", "mean", "random"])
def test_generate_takes_an_ensemble_and_what_passes_gets_the_tokens_of_an_unguarded_call(members, combination):
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    each = [judged(one) for one in members]
    means = sorted((a.score + b.score) / 2 for a, b in zip(*each, strict=True))
    limit = means[5] if combination == "mean" else None
    ensemble = GuardEnsemble(members, combination, flag_above=limit).bind(model, tokenizer)
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **settings).sequences
    found = model.generate(**inputs, **settings, custom_generate=ensemble.decoding_loop, guard=ensemble)
    flagged = [one.flagged for one in found.guard]
    if combination == "random":
        allowed = [{a.flagged, b.flagged} for a, b in zip(*each, strict=True)]
        assert all(one in known for one, known in zip(flagged, allowed, strict=True))
    else:
        assert flagged == [one.flagged for one in judged(ensemble)]
    assert any(flagged) and not all(flagged)
    refusal = ensemble.refusal_ids(found.guard[0])
    start = inputs["input_ids"].shape[1]
    for row, is_flagged in enumerate(flagged):
        new = found.sequences[row, start:].tolist()
        expected = refusal if is_flagged else plain[row, start:].tolist()
        assert new[: len(expected)] == expected
    again = GuardedModel(model, tokenizer, ensemble).generate(**inputs, **settings)
    assert combination == "random" or torch.equal(again.sequences, found.sequences)


@pytest.mark.parametrize("on_flag", ["truncate", "continue"])
def test_members_that_would_show_their_own_probe_are_no_ensemble(members, on_flag):
    monitor = {"stop_above": 1.0}
    with pytest.raises(ConfigError, match=f"on_flag={on_flag} goes on with the probe of one member"):
        GuardEnsemble([one.with_options(on_flag=on_flag, monitor=monitor) for one in members])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:guard calibrate")
@pytest.mark.parametrize("combination", ["any", "mean"])
def test_a_calibrated_ensemble_keeps_the_promised_rate_and_flags_marked_requests(stand_in, combination):
    from guard_stand_in import BORDERLINE, FORBIDDEN, PREFIX, generated_world, marked

    world = generated_world()
    ensemble = GuardEnsemble.calibrate(
        *stand_in,
        prefixes=(PREFIX, f"{PREFIX} help with"),
        combination=combination,
        target_fpr=0.05,
        harmful=world.prompts("val", FORBIDDEN),
        benign=world.prompts("val", "ordinary", 400),
        borderline=world.prompts("val", BORDERLINE),
        tier="prefix_hidden",
    )

    def share(texts):
        return sum(one.flagged for one in ensemble.judge(*stand_in, texts)) / len(texts)

    # 5 % promised; three standard errors of 150 draws are 5.3 %.
    assert share(world.prompts("test", "ordinary", 150)) <= 0.103
    assert share([marked(text) for text in world.prompts("test", FORBIDDEN, 50)]) >= 0.9
