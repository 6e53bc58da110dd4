"""Random postures of the arm."""

import numpy as np

# The vectors are printed to six digits.
PRINTED = 1e-6


def random_angles(count, limit_deg=90.0, seed=0):
    return np.radians(np.random.default_rng(seed).uniform(-limit_deg, limit_deg, (count, 5)))
