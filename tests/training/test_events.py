"""What a run tells its listeners."""

from listeners import Record

from featherweight.training.run import train


def test_listeners_hear_every_moment_in_order(recipe, tmp_path):
    record = Record()
    train(recipe(steps=3, evaluate_every=2, checkpoint_every=2), out=tmp_path / "run", callbacks=[record])
    assert record.moments == [
        ("start", 0),
        ("evaluate", 0),
        ("step", 1),
        ("step", 2),
        ("evaluate", 2),
        ("checkpoint", 2),
        ("step", 3),
        ("evaluate", 3),
        ("end", 3),
    ]
