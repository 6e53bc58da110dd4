import pytest

from featherweight.errors import ConfigError
from featherweight.models import (
    load_model,
)


def test_missing_source_names_what_is_near(tmp_path):
    (tmp_path / "llama-model").mkdir()
    with pytest.raises(ConfigError, match=r"does not exist; .*Did you mean 'llama-model'\?"):
        load_model(str(tmp_path / "lama-model"))
    with pytest.raises(ConfigError, match="is a folder without config.json"):
        load_model(str(tmp_path / "llama-model"))
    with pytest.raises(ConfigError, match=r"source=smolm2 cannot be loaded .*Did you mean 'smollm2'\?"):
        load_model("smolm2")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"weights.bin is no model; expected a model folder"):
        load_model(str(tmp_path / "weights.bin"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a JSON list; expected an object"):
        load_model(str(tmp_path / "list.json"))
