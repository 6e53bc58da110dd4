"""What steps in chunks have in common."""

import pytest

from featherweight.errors import ConfigError
from featherweight.training.step_progress import require_chunk_tokens


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "8", None])
def test_what_is_no_number_of_tokens_is_named(value):
    with pytest.raises(
        ConfigError, match=f"LayerMajor: chunk_tokens={value!r} is not allowed; expected a whole number"
    ):
        require_chunk_tokens("LayerMajor", value)


def test_a_number_of_tokens_passes():
    require_chunk_tokens("ChunkMajor", 1)
