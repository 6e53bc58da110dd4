"""Puts tests/reference on the path, so that the tests of this folder share its models and slow twins."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))
