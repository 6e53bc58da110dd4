"""Which modes of a tensor get a basis, in words."""

from typing import Literal

TensorKind = Literal["tucker", "tucker_channels", "matrix", "slices", "select"]
"""What `proj_type` may be: all modes; the first two; one side of an unfolding; each frequency by itself; the first two
rotated and of the others the strongest indices."""

SPECTRAL_KINDS = ("tucker", "tucker_channels")
"""Those whose ranks may follow the spectrum of the first gradient (``rank="auto"``)."""
