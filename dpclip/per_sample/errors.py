"""What a gradient backend refuses."""


class BatchDimensionError(RuntimeError):
    """A layer whose input or output does not have one row a sample, so that no per-sample gradient exists."""
