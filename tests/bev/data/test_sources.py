import pytest

from featherweight.bev.data.nuscenes import NuScenesIndex
from featherweight.bev.data.sources import open_source
from featherweight.errors import ConfigError


def test_a_folder_tells_its_format(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert isinstance(open_source(world), NuScenesIndex)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="none of the known data sets"):
        open_source(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        open_source(tmp_path / "nothing")
