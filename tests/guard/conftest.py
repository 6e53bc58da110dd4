"""The trained stand-in and one calibration of it, made once for all tests of the guard."""

import warnings

import pytest
from guard_stand_in import BORDERLINE, FORBIDDEN, PREFIX, generated_world, load_fixture

from featherweight.guard.guard import PrefixGuard


@pytest.fixture(scope="session")
def stand_in():
    """A model that follows a policy, and its tokenizer; not to be changed."""
    return load_fixture()


def pytest_collection_modifyitems(items):
    """Let one process calibrate the guard that several tests look at."""
    for item in items:
        if "cascade" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("guard calibration"))


@pytest.fixture(scope="session")
def place_of_readings(tmp_path_factory):
    """Where the calibration of `cascade` keeps what the model said."""
    return tmp_path_factory.mktemp("guard") / "readings"


@pytest.fixture(scope="session")
def readings_folder(cascade, place_of_readings):
    """What the calibration of `cascade` has kept of the model."""
    return place_of_readings


@pytest.fixture(scope="session")
def cascade(stand_in, place_of_readings):
    """A guard calibrated on unmarked requests only: it never sees what makes the model forget its policy."""
    world = generated_world()
    groups = {"harmful": FORBIDDEN, "benign": "ordinary", "borderline": BORDERLINE}
    rows = {
        name: [{"prompt": one.text, "category": one.intent} for one in world.val if _kind(one.domain) == domain]
        for name, domain in groups.items()
    }
    rows["benign"] = rows["benign"][:340]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"prefix": PREFIX, "target_fpr": 0.02, "tier": "cascade", "batch_size": 64}
        return PrefixGuard.calibrate(*stand_in, **rows, **settings, keep_readings=place_of_readings)


def _kind(domain):
    return domain if domain in (FORBIDDEN, BORDERLINE, "oos") else "ordinary"
