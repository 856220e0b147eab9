"""What a gradient backend refuses."""

from dpclip.errors import BatchDimensionError


class MisjudgedRows(BatchDimensionError):
    """A layer was taken to have one row a sample, and has not.

    It is known now, so the pass can be begun again.
    """


class LateGradient(BatchDimensionError):
    """A gradient of a group of parameters came after the group had been clipped.

    The pass can be begun again.
    """
