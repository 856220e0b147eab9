"""The per-sample view of one backward pass: norms, and weighted sums. The sensitive side."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from dpclip.gradient_sum import GradientSum, exact_products, wide
from dpclip.per_sample.factored import Dense, Factored
from dpclip.per_sample.forms import joined
from dpclip.per_sample.rows import RowEvidence


class PerSampleView(Protocol):
    """What a gradient backend offers of one physical micro-batch of B units and K groups."""

    def squared_norms(self) -> Tensor:
        """Squared L2 norms, shape [K, B], float32 or wider; not finite where a sample's gradient is not."""
        ...

    def weighted_sum(self, factors: Tensor, into: GradientSum) -> None:
        """Add sum_i factors[k, i] g_i[k] to `into`; a sample whose factors are 0 is not read at all."""
        ...

    def rewritten(self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]) -> PerSampleView:
        """The same samples with each parameter's gradients [B, d] written out and changed."""
        ...

    def doubts(self) -> list[str]:
        """Layers that are not yet known to have one row a sample; nothing may be released while there are any."""
        ...

    def tensors(self) -> list[Tensor]:
        """Everything that is held, for counting memory."""
        ...


ClipPart = Callable[[PerSampleView], None]  # takes a part of a view into the step's sums


class Backend(Protocol):
    """Computes per-sample views of a model."""

    def capture(
        self, units: int, owners: Tensor | None = None, clip_part: ClipPart | None = None
    ) -> AbstractContextManager[PerSampleView]:
        """Watch one forward and backward pass.

        Args:
            units: B, privacy units in the micro-batch.
            owners: for batches with several rows a unit, the unit of each row, shape [rows].
            clip_part: for rules that clip each group by its own norms: may be given each group as soon as it is
                complete, inside the backward pass. The view that is left then holds that group's norms alone.
        """
        ...

    @property
    def unproven(self) -> bool:
        """Whether the next micro-batch should be a small one, so that rows can be told from positions (`rows.py`)."""
        ...

    def close(self) -> None:
        """Remove every hook from the model."""
        ...


class FactoredView:
    """A view made of each parameter's gradients in factored form.

    Args:
        groups: the group of each parameter.
        units: privacy units in the micro-batch.
        owners: the unit of each row, or None where rows are units.
        scale: what the recorded gradients are to be multiplied by (B, if the loss was a mean).
        evidence: what is known of the model's layers.
    """

    def __init__(
        self,
        groups: Sequence[int],
        units: int,
        owners: Tensor | None,
        scale: float,
        evidence: RowEvidence | None = None,
    ) -> None:
        self.evidence = evidence
        self.groups, self.units, self.owners, self.scale = list(groups), units, owners, scale
        self._uses: list[list[Factored]] = [[] for _ in self.groups]
        self.forgotten = False
        self.narrow = False  # whether a layer computed in less than float32
        self._norms: list[Tensor | None] = [None] * len(self.groups)

    def add(self, slot: int, use: Factored) -> None:
        """Take in the gradients of one use of a parameter."""
        self._uses[slot].append(use)

    def saw(self, slot: int) -> bool:
        """Whether the parameter was used."""
        return bool(self._uses[slot]) or self._norms[slot] is not None

    def spend(self, group: int, clip_part: ClipPart) -> None:
        """Have one group clipped now; its norms stay, its gradients go."""
        slots = [slot for slot, k in enumerate(self.groups) if k == group]
        clip_part(Part(self, slots))
        self.forget_slots(slots)

    def doubts(self) -> list[str]:
        return self.evidence.doubts() if self.evidence is not None else []

    def settle(self) -> None:
        """Called when the pass is complete and checked."""
        return None

    def forget(self, kept: Container[int] = ()) -> None:
        """Keep the norms alone, but for some parameters."""
        self.forget_slots([slot for slot in range(len(self.groups)) if slot not in kept])
        for slot in range(len(self.groups)):
            if self.saw(slot):
                self._squared(slot)
        self.forgotten = True

    def forget_slots(self, slots: Iterable[int]) -> None:
        """Keep these parameters' norms alone."""
        for slot in slots:
            if self._uses[slot]:
                self._squared(slot)
                self._uses[slot].clear()

    def squared_norms(self) -> Tensor:
        return self.squared_norms_of(range(len(self.groups)))

    def squared_norms_of(self, slots: Iterable[int]) -> Tensor:
        """`squared_norms` as if these were the only parameters."""
        norms = [(self.groups[slot], self._squared(slot)) for slot in slots if self.saw(slot)]
        # float64 only where every part is: the engine's allowance for rounding goes by the dtype.
        dtype = torch.float64 if norms and all(n.dtype == torch.float64 for _, n in norms) else torch.float32
        device = norms[0][1].device if norms else torch.device("cpu")
        squares = torch.zeros(max(self.groups) + 1, self.units, dtype=dtype, device=device)
        for group, norm in norms:
            squares[group] += norm.to(squares)
        return squares * self.scale**2

    def weighted_sum(self, factors: Tensor, into: GradientSum) -> None:
        self.add_slots(range(len(self.groups)), factors, into)

    def add_slots(self, slots: Iterable[int], factors: Tensor, into: GradientSum) -> None:
        """`weighted_sum` of some parameters."""
        read = factors != 0
        whole = read.all(1).tolist()
        for slot in slots:
            if self._uses[slot]:
                group = self.groups[slot]
                keep = None if whole[group] else read[group]
                self._add(slot, factors[group] * self.scale, into.tensors[slot], keep)

    def tensors(self) -> list[Tensor]:
        return [tensor for uses in self._uses for use in uses for tensor in use.tensors()]

    def size_of(self, slot: int) -> float:
        """Root of the summed squared norms of one parameter's gradients; samples that are not finite left out."""
        if not self.saw(slot):
            return 0.0
        return self.scale * float(self._squared(slot).nan_to_num(0.0, 0.0, 0.0).sum().sqrt())

    def sum_of(self, slot: int, like: Tensor) -> Tensor:
        """The plain sum of one parameter's gradients."""
        total = torch.zeros_like(like, dtype=wide(like.dtype))
        ones = torch.full((self.units,), float(self.scale), dtype=total.dtype, device=like.device)
        self._add(slot, ones, total, None)
        return total

    def samples(self, slot: int) -> Tensor | None:
        """One parameter's gradients written out, [units, *shape], float32 or wider; None if it was not used."""
        if not self._uses[slot]:
            return None
        samples = self._by_unit(slot).written_out().samples
        return samples.to(wide(samples.dtype)) * self.scale

    def rewritten(self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]) -> FactoredView:
        if self.forgotten:
            raise RuntimeError("the gradients are gone: make the backend with written_out=True")
        device = next((tensor.device for tensor in self.tensors()), torch.device("cpu"))
        changed = FactoredView(self.groups, self.units, None, 1.0, self.evidence)
        for slot, size in enumerate(sizes):
            samples = self.samples(slot)
            if samples is None:
                samples = torch.zeros(self.units, size, device=device)
            changed.add(slot, Dense(change(slot, samples.reshape(self.units, size))))
        return changed

    def _by_unit(self, slot: int) -> Factored:
        whole = joined(self._uses[slot])
        return whole if self.owners is None else whole.by_unit(self.owners.to(whole.device), self.units)

    def _squared(self, slot: int) -> Tensor:
        known = self._norms[slot]
        if known is None:
            with exact_products():
                known = self._norms[slot] = self._by_unit(slot).squared_norms()
        return known

    def _add(self, slot: int, factors: Tensor, total: Tensor, keep: Tensor | None) -> None:
        factors = factors.to(total.device)
        if self.owners is not None:
            owners = self.owners.to(total.device)
            factors, keep = factors[owners], None if keep is None else keep.to(total.device)[owners]
        with exact_products():
            for use in self._uses[slot]:
                use.add_weighted(factors, total, keep)


class Part:
    """Some parameters of a view, as a view."""

    def __init__(self, whole: FactoredView, slots: Sequence[int]) -> None:
        self._whole, self._slots = whole, list(slots)

    def squared_norms(self) -> Tensor:
        return self._whole.squared_norms_of(self._slots)

    def weighted_sum(self, factors: Tensor, into: GradientSum) -> None:
        self._whole.add_slots(self._slots, factors, into)

    def rewritten(self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]) -> PerSampleView:
        raise RuntimeError("a rule that changes coordinates sees all parameters at once: it cannot be separable")

    def doubts(self) -> list[str]:
        return self._whole.doubts()

    def tensors(self) -> list[Tensor]:
        return self._whole.tensors()
