import pytest

from featherweight.models.quiet import quiet_transformers


def test_quiet_transformers_restores_verbosity_and_bars_after_an_error():
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_info()
    try:
        with pytest.raises(ZeroDivisionError), quiet_transformers():
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
            assert not transformers_logging.is_progress_bar_enabled()
            raise ZeroDivisionError
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()
