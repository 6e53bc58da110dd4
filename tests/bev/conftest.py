"""One small world for all tests of the ground."""

import pytest

pytest.importorskip("shapely")


def pytest_collection_modifyitems(items):
    """Let one process make the world and the run that several tests look at."""
    for item in items:
        if {"world", "run"} & set(getattr(item, "fixturenames", ())) and "tests/bev" in item.path.as_posix():
            item.add_marker(pytest.mark.xdist_group("bev"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A drawn world: ten drives of four frames at 224 x 128."""
    from featherweight.bev.synthetic.rig import WorldConfig
    from featherweight.bev.synthetic.world import write_world

    options = WorldConfig(scenes=10, frames=4, image_width=224, image_height=128)
    return write_world(tmp_path_factory.mktemp("bev") / "world", options)


@pytest.fixture(scope="session")
def index(world, tmp_path_factory):
    """Its index."""
    from featherweight.bev.data.nuscenes import NuScenesIndex

    return NuScenesIndex(world, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Indices are kept here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def run(world, cache, tmp_path_factory):
    """A run of three steps with a memory, cycle and pitch."""
    import featherweight as fw

    recipe = {
        "task": {
            "name": "bev",
            "data": str(world),
            "limit_sequences": 2,
            "pitch_jitter_deg": 0.5,
            "model": {"use_cycle": True, "memory_length": 2, "use_pitch_head": True},
        },
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "steps": 3,
        "micro_batch_size": 2,
        "evaluate_every": 3,
        "seed": 0,
    }
    folder = tmp_path_factory.mktemp("run") / "bev"
    return fw.train(recipe, out=folder)
