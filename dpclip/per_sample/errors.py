"""What a gradient backend refuses."""

from dpclip.errors import BadInput


class BatchDimensionError(BadInput, RuntimeError):
    """A layer whose input or output does not have one row a sample, so that no per-sample gradient exists."""


class MisjudgedRows(BatchDimensionError):
    """A layer was taken to have one row a sample, and has not; it is known now, so the pass can be begun again."""


class LateGradient(BatchDimensionError):
    """A gradient of a group of parameters that had already been clipped; the pass can be begun again."""
