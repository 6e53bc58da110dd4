"""Options of the task."""

import pytest

from featherweight.errors import ConfigError
from featherweight.pde.options import PdeConfig


@pytest.mark.parametrize(
    ("loss", "measure", "beside"),
    [("h1", "relative H1 error", "l2"), ("h1_periodic", "relative H1 error, periodic", "l2")]
    + [("l2", "relative L2 error", "h1")],
)
def test_the_words_follow_the_loss_and_the_other_error_is_shown_beside_it(loss, measure, beside):
    words = PdeConfig(loss=loss).words()
    assert (words.items, words.loss, words.metrics) == ("samples", measure, (beside,))


@pytest.mark.parametrize("wrong", [{"resolution": 3}, {"n_layers": 0}, {"domain_padding": 1}, {"n_mode": [4]}])
def test_options_out_of_range_or_unknown_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        PdeConfig.parse(wrong, where="pde task")
