"""One parameter in one step: without subspace, as a matrix, as a tensor; and the write of its weight."""
