"""What varies between optimizers: inner rules, refreshes, moments at a refresh, the gradient outside the subspace."""
