"""How much memory an operation on tensors may take for itself."""

MAX_WORKSPACE_BYTES = 1 << 28
"""Largest transient copy of an unfolding: 256 MiB."""
