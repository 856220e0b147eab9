"""How much memory a row takes in the backward pass, counted on public stand-in rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dpclip.per_sample import Backend, make_backend
from dpclip.precision import accumulation_dtype

_TRANSIENT = 1.5  # what comes and goes beside what is kept: copies of logits, gradients in flight
_COPIES = 3  # of a row's gradients: as they are, centred, and in new coordinates


@dataclass(frozen=True)
class Footprint:
    """Bytes of a private step beyond the model itself.

    Attributes:
        fixed: whatever the batch: the sum, and an optimizer's two moments.
        row: for each row of a micro-batch, of the longest kind.
    """

    fixed: int
    row: int

    def rows(self, free: float) -> int:
        """Return the most rows that fit.

        Args:
            free: bytes that there are.

        Returns:
            at least 0.
        """
        return max(0, int((free - self.fixed) / max(1, self.row)))


def footprint(
    model: nn.Module,
    losses: Callable[[nn.Module, Any], Tensor],
    collate: Callable[[list[Any]], Any],
    longest: Sequence[Any],
    grad_sample_mode: str = "auto",
    materialized: bool = False,
) -> Footprint:
    """Count what two backward passes keep, with one row and with three.

    Args:
        model: its values are left as they were.
        losses: one loss a row, shape [rows].
        collate: makes a batch of a list of examples.
        longest: three public examples of the greatest length.
        grad_sample_mode: a name of `BACKENDS`.
        materialized: the rule changes coordinates, and so writes every gradient out.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    backend = make_backend(grad_sample_mode, model, parameters, [0] * len(parameters))
    try:
        one, three = (
            _kept(backend, model, losses, collate(list(longest[:count])), count) for count in (1, 3)
        )
    finally:
        backend.close()
    sums = sum(p.numel() * accumulation_dtype(p.dtype).itemsize for p in parameters)
    row = int(_TRANSIENT * max(one / 2, (three - one) / 2))
    return Footprint(3 * sums, row + (_COPIES * sums if materialized else 0))


def _kept(
    backend: Backend,
    model: nn.Module,
    losses: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    rows: int,
) -> int:
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with backend.capture(rows) as view:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = losses(model, batch).mean()
        loss.backward()
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in view.tensors()}
    return sum((storages | extra).values())
