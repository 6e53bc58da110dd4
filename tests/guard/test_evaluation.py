import pytest
from guard_stand_in import BORDERLINE, FORBIDDEN, generated_world, load_fixture, load_guard

from featherweight.errors import ConfigError
from featherweight.guard.evaluation import evaluate_guard

WORLD = generated_world()


def test_new_prompts_are_counted_with_intervals():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    report = evaluate_guard(
        guard,
        model,
        tokenizer,
        harmful=WORLD.prompts("test", FORBIDDEN, 30),
        benign=WORLD.prompts("test", "ordinary", 30),
        borderline=WORLD.prompts("test", BORDERLINE, 30),
    )
    rows = {row[0]: row for row in report.section("Flagged").rows}
    assert [row[1] for row in rows.values()] == [30, 30, 30]
    for _, count, hits, rate, low, high, _, errors in rows.values():
        assert rate == 100 * hits / count and low <= rate <= high and errors == 0
    assert rows["harmful"][2] >= 26 and rows["benign"][2] <= 3
    with pytest.raises(ConfigError, match="asks the same as"):
        evaluate_guard(guard, model, tokenizer, harmful=["a"], benign=["A"])
