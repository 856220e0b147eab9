"""Which tensors have one row a sample, learned from batches of different sizes.

A table of positions looked up without a batch dimension has the length of the text as its first
dimension, and looks like one row a sample when both happen to be 32. Its gradients would then be
given to the wrong samples, and one record could move the sum further than its bound. A layer is
trusted once it has been seen with two batch sizes; until then nothing may be released that was
computed with it from more than one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import Tensor, nn


class RowEvidence:
    """What has been seen of a model's layers so far.

    Shared by every backend that watches the model.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, set[int]] = {}
        self._shared: set[str] = set()
        # layers taken to be row-wise in an earlier batch of several units
        self._mixed: set[str] = set()
        self._now: set[str] = set()  # ... and in this one
        # layers given one input for all rows, and whether that is proven
        self._broadcast: dict[str, bool] = {}
        self._alone = True
        self._lengths: set[int] = set()

    @classmethod
    def of(cls, model: nn.Module) -> RowEvidence:
        """Return the evidence on this model object.

        Args:
            model: by identity; it is not kept alive.
        """
        return _EVIDENCE.setdefault(model, cls())

    def begin(self, units: int) -> None:
        """Begin a new forward pass.

        Args:
            units: in the micro-batch; with one, whose gradient is whose is no question.
        """
        self._mixed |= self._now - self._shared
        self._lengths, self._now, self._alone = set(), set(), units == 1

    def per_row(self, name: str, rows: int, tensors: Sequence[Tensor]) -> bool:
        """Judge one call of a layer by its first input and its output.

        Args:
            name: the layer.
            rows: rows in the batch.
            tensors: each must have `rows` rows, or rows * n with n a sequence length seen in this
                pass.

        Returns:
            whether the call is row-wise. A layer that was not, once, never is again.
        """
        if name in self._shared:
            return False
        if not tensors or not all(self._fits(tensor, rows) for tensor in tensors):
            self._shared.add(name)
            return False
        self._sizes.setdefault(name, set()).add(rows)
        if not self._alone:
            self._now.add(name)
        self._lengths |= {t[0, ..., 0].numel() for t in tensors if t.dim() > 2 and len(t) == rows}
        return True

    def broadcasts(self, name: str, rows: int, tensors: Sequence[Tensor]) -> bool:
        """Whether a call's inputs are one row for all samples, to be repeated for each.

        One position of every sample, [1, rows, ...] in a model with the time first, looks the same
        until the length is neither 1 nor the number of rows; until then nothing may be released.

        Args:
            name: the layer.
            rows: rows in the batch.
            tensors: the inputs; all must be [1, length, ...].
        """
        if name in self._shared or not tensors or any(t.dim() < 2 or len(t) != 1 for t in tensors):
            return False
        proven = all(t.shape[1] not in (1, rows) for t in tensors)
        self._broadcast[name] = self._broadcast.get(name, False) or proven
        return True

    def merged(self, tensor: Tensor, rows: int) -> bool:
        """Whether batch and length were merged into [rows * n, ...]; index tensors never are.

        Args:
            tensor: an input or output of a layer.
            rows: rows in the batch.
        """
        return (
            tensor.dim() > 1
            and tensor.is_floating_point()
            and len(tensor) != rows
            and len(tensor) % rows == 0
            and len(tensor) // rows in self._lengths
        )

    def misjudged(self, name: str) -> bool:
        """Whether a layer was wrongly taken to be row-wise in an earlier batch of several units.

        Said once of each layer.

        Args:
            name: the layer.
        """
        if name not in self._shared or name not in self._mixed:
            return False
        self._mixed.discard(name)
        self._broadcast.pop(name, None)
        return True

    def doubts(self) -> list[str]:
        """List layers that were only ever seen with one batch size, and that with several units."""
        seen_once = {
            name for name in (self._mixed | self._now) - self._shared if len(self._sizes[name]) == 1
        }
        return sorted(seen_once | {name for name, proven in self._broadcast.items() if not proven})

    @property
    def seen_once(self) -> bool:
        """Whether a layer that has one row a sample was only ever seen with one batch size."""
        return any(
            len(sizes) == 1 for name, sizes in self._sizes.items() if name not in self._shared
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was seen yet."""
        return not self._sizes

    def _fits(self, tensor: Tensor, rows: int) -> bool:
        return tensor.dim() > 0 and (len(tensor) == rows or self.merged(tensor, rows))


_EVIDENCE: WeakKeyDictionary[nn.Module, RowEvidence] = WeakKeyDictionary()
