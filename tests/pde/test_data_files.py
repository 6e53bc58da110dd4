import pytest

from featherweight.errors import ConfigError
from featherweight.pde.data_files import find_files
from featherweight.pde.options import PdeConfig


def test_the_training_file_comes_with_its_own_test_file_first_and_others_behind(tmp_path):
    names = ["darcy_train_8.pt", "darcy_test_8.pt", "darcy_test_16.pt", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    train, tests = find_files(PdeConfig(data=str(tmp_path)))
    assert train.name == names[0] and [one.name for one in tests] == names[1:3]
    with pytest.raises(ConfigError, match="holds none of the wanted training files"):
        find_files(PdeConfig(data=str(tmp_path), resolution=16))
    with pytest.raises(ConfigError, match="test_data=absent.pt is no file"):
        find_files(PdeConfig(data=str(tmp_path), test_data=["absent.pt"]))
