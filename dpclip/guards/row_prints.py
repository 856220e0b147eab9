"""What the check on rows compares: fingerprints of gradients, and batches with rows exchanged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpclip.errors import InputError
from dpclip.gradient_sum import bits
from dpclip.per_sample import FactoredView
from dpclip.per_sample.forms.factored import Factored
from dpclip.sampling.micro_batches import changed, tensors_in

_ODD = 0x1E3779B97F4A7C15  # spreads the places of a row over 64 bits


@dataclass(frozen=True)
class Prints:
    """What one turn gave.

    Attributes:
        losses: [rows].
        prints: a number for all bits of what each row's gradients are made of, int64, [rows].
        norms: squared L2, float64, [K, units].
        vanishing: rows without any gradient, bool, [rows].
    """

    losses: Tensor
    prints: Tensor
    norms: Tensor
    vanishing: Tensor

    @classmethod
    def of(cls, losses: Tensor, view: FactoredView, rows: int) -> Prints:
        """Take the prints of one backward pass, before its uses are put together.

        Args:
            losses: [rows].
            view: of the pass.
            rows: in the micro-batch.
        """
        vanishing = torch.ones(rows, dtype=torch.bool)
        for use in view.uses():
            vanishing &= use.vanishing().cpu()
        prints = _fingerprint(view.uses(), rows)
        return cls(losses.detach().cpu(), prints, view.squared_norms().cpu(), vanishing)

    def equals(self, other: Prints) -> bool:
        """Whether losses, prints and norms are the same, bit for bit.

        Args:
            other: of as many rows.
        """
        pairs = (
            (self.losses, other.losses),
            (self.prints, other.prints),
            (self.norms, other.norms),
        )
        return all(torch.equal(bits(a), bits(b)) for a, b in pairs)

    def moved(self, places: int, rows_each: int) -> Prints:
        """Return the same, of units that are further on, as if they were in a ring.

        Args:
            places: by how many.
            rows_each: rows of a unit.
        """
        by = places * rows_each
        return Prints(
            self.losses.roll(by),
            self.prints.roll(by),
            self.norms.roll(places, 1),
            self.vanishing.roll(by),
        )

    def compare(self, other: Prints, rows: Tensor, units: Tensor, how: str) -> None:
        """Check that some rows are the same bits in another turn.

        Args:
            other: the other turn's.
            rows: which rows, bool, [rows].
            units: which units those are, bool, [units].
            how: what was changed, to end the message.

        Raises:
            InputError: they are not.
        """
        if not torch.equal(bits(other.losses[rows]), bits(self.losses[rows])):
            raise InputError(f"a row's loss changes {how}")
        same = torch.equal(other.prints[rows], self.prints[rows])
        if not same or not torch.equal(bits(other.norms[:, units]), bits(self.norms[:, units])):
            raise InputError(f"a row's gradient changes {how}")


def _fingerprint(uses: Sequence[Factored], rows: int) -> Tensor:
    found = torch.zeros(rows, dtype=torch.int64)
    for number, use in enumerate(uses):
        for place, tensor in enumerate(use.tensors()):
            # -0 is 0
            values = tensor.detach() + 0.0 if tensor.is_floating_point() else tensor.detach()
            flat = bits(values).reshape(rows, -1).to(torch.int64)
            odd = torch.arange(flat.shape[1], device=flat.device) * _ODD
            found += ((flat * (2 * odd + 1)).sum(1) * (2 * (31 * number + place) + 1)).cpu()
    return found


def differ(one: Any, other: Any) -> bool:
    """Whether two batches of one shape hold anything that differs.

    Args:
        one: as collated; compared by their tensors, or else by what they print.
        other: likewise.
    """
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    return any(not torch.equal(a, b) for a, b in pairs) if pairs else repr(one) != repr(other)


def mixed(one: Any, other: Any, rows: Tensor) -> Any:
    """Put some rows of one batch together with the rest of another.

    Args:
        one: batches of one shape.
        other: batches of one shape.
        rows: which rows are `one`'s, bool, [rows].
    """
    others = iter(tensors_in(other))
    return changed(one, lambda tensor: _where(rows, tensor, next(others)))


def varied(batch: Any, rows: Tensor) -> Any:
    """Keep some rows as they are, and change the rest; for data whose rows are all alike.

    The rest is moved half way to random numbers of the unit interval, or made of what the row
    begins with.

    Args:
        batch: as collated.
        rows: which rows are kept, bool, [rows].
    """
    generator = torch.Generator().manual_seed(0)

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return _where(
                rows,
                tensor,
                (tensor + torch.rand(tensor.shape, generator=generator).to(tensor)) / 2,
            )
        return (
            _where(rows, tensor, tensor[..., :1].expand_as(tensor)) if tensor.dim() > 1 else tensor
        )

    return changed(batch, other)


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    if one.dim() == 0 or len(one) != len(rows):
        return one
    return torch.where(rows.to(one.device).view(-1, *[1] * (one.dim() - 1)), one, other)


@contextmanager
def stilled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Keep the model in evaluation mode within the block, then put each module's own back.

    Args:
        model: with all its modules.
        wanted: whether to do anything.
    """
    training = [module for module in model.modules() if module.training] if wanted else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def loud(model: nn.Module, rows: Tensor, by: float) -> Iterator[None]:
    """Multiply what the model returns for all but some rows, within the block.

    Args:
        model: hooked for as long.
        rows: which rows are left alone, bool, [rows].
        by: the factor; NaN makes them no numbers, 1 changes nothing.
    """
    if by == 1:
        yield
        return

    def other(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return _where(rows, tensor, torch.full_like(tensor, by) if math.isnan(by) else tensor * by)

    def louder(_: nn.Module, __: Any, output: Any) -> Any:
        return pytree.tree_map_only(Tensor, other, output)

    handle = model.register_forward_hook(louder)
    try:
        yield
    finally:
        handle.remove()
