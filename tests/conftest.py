"""What every test shares: one thread, no network, no display, and a seeded generator."""

import gc
import os

# Before the first import of the packages, which read these once. No default test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import pytest  # noqa: E402
import torch  # noqa: E402

# Two processes of pytest-xdist with several threads each on a small machine make small LAPACK calls many times slower.
torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator on the CPU with a fixed seed, fresh for every test."""
    return torch.Generator().manual_seed(20240607)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: those made while collecting (gzip notes the second) differ between processes."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Take what the imports made (a million objects that stay) out of the garbage collector's rounds."""
    gc.collect()
    gc.freeze()
