"""The page: an arm in a browser, driven through the same pipeline as from every other host."""
