"""The transformer: declared with NNX, computed by plain functions on a dict of arrays."""
