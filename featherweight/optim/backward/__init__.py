"""Updates inside the backward pass: the handle, cores that come without a gradient, bases of several weights."""
