"""Optimizers by the name of their paper: each chooses policies of the one low-rank step."""
