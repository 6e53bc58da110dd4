from pathlib import Path

import pytest

from featherweight.errors import ConfigError
from featherweight.methods.options import WeLoreOptions
from featherweight.text.compress_check import check_compression


def test_texts_that_are_needed_are_asked_for():
    whitened = WeLoreOptions(method="whitened")
    with pytest.raises(ConfigError, match="method=whitened needs data"):
        check_compression("tiny", Path("absent"), whitened, calibration=None, evaluate="english")
    check_compression("tiny", Path("absent"), whitened, calibration=None, evaluate="english", searches=True)
    with pytest.raises(ConfigError, match="max_perplexity needs a text"):
        check_compression("tiny", Path("absent"), whitened, calibration=None, evaluate=None, searches=True)
