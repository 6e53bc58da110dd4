"""WeLore: low-rank compression with a rank of its own for each matrix, and fine-tuning of the low-rank parts."""

from featherweight.methods.welore.method import WeLore
from featherweight.methods.welore.report import rank_reduction

__all__ = ["WeLore", "rank_reduction"]
