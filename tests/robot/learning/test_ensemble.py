"""Chunks become one action."""

import numpy as np

from featherweight.robot.learning.ensemble import ChunkEnsemble


def chunk(start, length=3):
    return np.arange(start, start + length, dtype=float)[:, None].repeat(6, axis=1)


def test_overlapping_chunks_are_blended_with_the_oldest_first():
    ensemble = ChunkEnsemble(10.0, decay=1.0)
    ensemble.put(0.0, chunk(0))
    assert ensemble.at(0.0) == (0.0,) * 6 and ensemble.at(0.19) == (1.0,) * 6
    ensemble.put(0.1, chunk(10))
    expected = (1 * 1.0 + 10 * np.exp(-1)) / (1 + np.exp(-1))
    assert np.allclose(ensemble.at(0.1), expected)


def test_a_chunk_is_never_used_beyond_its_end():
    ensemble = ChunkEnsemble(10.0)
    assert ensemble.at(0.0) is None
    ensemble.put(0.0, chunk(0))
    assert ensemble.at(0.25) == (2.0,) * 6 and ensemble.at(0.3) is None
    ensemble.put(1.0, chunk(5))
    ensemble.clear()
    assert ensemble.at(1.0) is None


def test_the_latest_chunk_may_stand_alone():
    ensemble = ChunkEnsemble(10.0, latest_alone=True)
    ensemble.put(0.0, chunk(0))
    ensemble.put(0.1, chunk(50))
    assert ensemble.at(0.2) == (51.0,) * 6
