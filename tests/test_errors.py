import pickle

import pytest

from featherweight import errors

TREE = {
    errors.ConfigError: ValueError,
    errors.ShapeError: ValueError,
    errors.CheckpointError: RuntimeError,
    errors.NumericsError: RuntimeError,
    errors.MissingExtraError: ImportError,
    errors.DeviceError: RuntimeError,
    errors.OutOfMemoryError: errors.DeviceError,
}


@pytest.mark.parametrize(("error", "standard"), TREE.items())
def test_each_error_is_ours_and_the_standard_one(error, standard):
    assert issubclass(error, errors.FeatherweightError)
    assert issubclass(error, standard)


@pytest.mark.parametrize("error", TREE)
def test_errors_survive_pickling_so_that_worker_processes_can_raise_them(error):
    copy = pickle.loads(pickle.dumps(error("where: rank=0 is wrong; expected >= 1. Raise it.")))

    assert type(copy) is error
    assert str(copy) == "where: rank=0 is wrong; expected >= 1. Raise it."


def test_the_tree_in_this_file_is_complete():
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.FeatherweightError)
    }

    assert defined == {errors.FeatherweightError, *TREE}


def test_nearest_puts_the_best_spelling_first_and_keeps_to_the_limit():
    known = ["rank", "ranks", "ranked", "scale"]

    assert errors.nearest("rnak", known)[0] == "rank"
    assert len(errors.nearest("rank", known, limit=2)) == 2
    assert errors.nearest("zzz", known) == []


def test_did_you_mean_names_the_nearest_spelling_or_all_that_is_known():
    assert errors.did_you_mean("lerning_rate", ["learning_rate", "rank"]) == "Did you mean 'learning_rate'?"
    assert errors.did_you_mean("xyz", ["rank", "scale"]) == "Known: rank, scale."
    assert errors.did_you_mean("xyz", iter(["rank"])) == "Known: rank."
    assert errors.did_you_mean("xyz", ["rank"], otherwise=errors.LISTED) == "Choose one of them."
    assert errors.did_you_mean("rnak", ["rank"], otherwise=errors.LISTED) == "Did you mean 'rank'?"
