"""What only tensors need: how they are viewed, which ranks they get, and their options."""
