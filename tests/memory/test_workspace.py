import pytest

from featherweight.errors import ConfigError
from featherweight.memory.cards import find_card
from featherweight.memory.workspace import workspace_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("card", "cublas_bytes"),
    [("rtx 4090", 8_519_680), ("a100 80gb", 8_519_680), ("h100", 32 * MIB), ("5090", 32 * MIB)],
)
def test_defaults_follow_the_capability(card, cublas_bytes):
    assert workspace_bytes(find_card(card).capability) == cublas_bytes + MIB


def test_every_stream_has_its_own():
    assert workspace_bytes((8, 0), streams=3) == 3 * workspace_bytes((8, 0))
    assert workspace_bytes((8, 0), streams=0) == 0


def test_the_settings_of_a_process_are_read():
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8:16:2", "CUBLASLT_WORKSPACE_SIZE": "2048"}
    assert workspace_bytes((9, 0), environment=environment) == 32 * MIB + 32 * 1024 + 2 * MIB


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG=4096 cannot be read"):
        workspace_bytes((8, 0), environment={"CUBLAS_WORKSPACE_CONFIG": "4096"})
    with pytest.raises(ConfigError, match="CUBLASLT_WORKSPACE_SIZE=1 MB cannot be read"):
        workspace_bytes((8, 0), environment={"CUBLASLT_WORKSPACE_SIZE": "1 MB"})
    with pytest.raises(ConfigError, match="streams=-1 is negative"):
        workspace_bytes((8, 0), streams=-1)
