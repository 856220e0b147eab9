"""The per-sample view of one backward pass: norms, and weighted sums. The sensitive side."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.per_sample.forms.outer_products import joined
from dpclip.per_sample.row_evidence import RowEvidence
from dpclip.precision import accumulation_dtype, exact_products
from dpclip.registry import Registry


class Sums(Protocol):
    """Where weighted gradients go, one sum a parameter: `GradientSum` or `ExactSum`."""

    def take(self, slot: int, form: Any, factors: Tensor, keep: Tensor | None) -> None:
        """Add sum_i factors[i] g_i of one parameter.

        Args:
            slot: the parameter's index.
            form: its per-sample gradients (`Factored`).
            factors: weight of each, [B].
            keep: which units are read at all, bool, [B]; None reads all.
        """
        ...


class PerSampleView(Protocol):
    """What a gradient backend offers of one physical micro-batch of B units and K groups."""

    def squared_norms(self) -> Tensor:
        """Squared L2 norms from above, shape [K, B], float64.

        Not finite where a unit is not to count: where its gradient is not finite, and for dummies
        that only fill a micro-batch up.
        """
        ...

    def weighted_sum(self, factors: Tensor, into: Sums) -> None:
        """Add sum_i factors[k, i] g_i[k].

        A sample whose factors are 0 adds nothing, be its gradient finite or not.

        Args:
            factors: [K, B].
            into: one sum a parameter, on the sum scale.
        """
        ...

    def map_samples(
        self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]
    ) -> PerSampleView:
        """Write each parameter's gradients out, and change them.

        Args:
            change: parameter's index and gradients [B, d], float32 or wider -> what stands for
                them, [B, d].
            sizes: d of each parameter; one that was not used has gradients 0.
        """
        ...

    def doubts(self) -> list[str]:
        """List layers not yet known to have one row a sample; any forbids a release."""
        ...

    def tensors(self) -> list[Tensor]:
        """List everything that is held, for counting memory."""
        ...


ClipPart = Callable[[PerSampleView], None]  # takes a part of a view into the step's sums


class Backend(Protocol):
    """Computes per-sample views of a model."""

    def capture(
        self,
        units: int,
        rows_each: int = 1,
        present: Tensor | None = None,
        clip_part: ClipPart | None = None,
    ) -> AbstractContextManager[PerSampleView]:
        """Watch one forward and backward pass.

        Args:
            units: B, privacy units in the micro-batch.
            rows_each: consecutive rows that belong to each unit.
            present: which units count, bool, [B]; the others are dummies. None: all.
            clip_part: for rules that clip each group by its own norms: may be given each group as
                soon as it is complete, inside the backward pass. The view that is left then holds
                that group's norms alone.
        """
        ...

    @property
    def unproven(self) -> bool:
        """Whether a small micro-batch should come first, to separate rows from positions.

        See `row_evidence.py`.
        """
        ...

    def refuse_plain_backward(self) -> None:
        """Take gradients in within `expected` only, from now on."""
        ...

    def expected(self) -> AbstractContextManager[None]:
        """Take gradients in within the block, whose backward pass is one that may be taken in."""
        ...

    def close(self) -> None:
        """Remove every hook from the model."""
        ...


BACKENDS: Registry[Backend] = Registry("gradient mode", "dpclip.grad_sample_modes")


class FactoredView:
    """A view made of each parameter's gradients in factored form.

    Args:
        groups: the group of each parameter.
        units: B, privacy units in the micro-batch.
        rows_each: consecutive rows of each unit.
        scale: what the recorded gradients are to be multiplied by (B, if the loss was a mean).
        evidence: what is known of the model's layers.
        present: which units count, bool, [B]; None: all.
    """

    def __init__(
        self,
        groups: Sequence[int],
        units: int,
        rows_each: int = 1,
        scale: float = 1.0,
        evidence: RowEvidence | None = None,
        present: Tensor | None = None,
    ) -> None:
        self.evidence, self.present = evidence, present
        self.groups, self.units, self.rows_each, self.scale = list(groups), units, rows_each, scale
        # of the gradients by every watched output, in order
        self.shapes: list[tuple[int, ...]] = []
        self._uses: list[list[Factored]] = [[] for _ in self.groups]
        self._by_units = [False] * len(self.groups)
        self.forgotten = False
        self.narrow = False  # whether a layer computed in less than float32
        self._norms: list[Tensor | None] = [None] * len(self.groups)

    def add(self, slot: int, use: Factored) -> None:
        """Take in the gradients of one use of a parameter.

        Args:
            slot: the parameter's index.
            use: its gradients, a row each.

        Raises:
            RuntimeError: the parameter's gradients have been measured already.
        """
        if self._by_units[slot]:
            raise RuntimeError(
                "a gradient arrived after its parameter's gradients had been measured"
            )
        self._uses[slot].append(use)

    def uses(self) -> list[Factored]:
        """List everything taken in and not yet let go, in the order of the parameters."""
        return [use for uses in self._uses for use in uses]

    def saw(self, slot: int) -> bool:
        """Whether the parameter was used.

        Args:
            slot: the parameter's index.
        """
        return bool(self._uses[slot]) or self._norms[slot] is not None

    def spend(self, group: int, clip_part: ClipPart) -> None:
        """Have one group k clipped now; its norms stay, its gradients go.

        Args:
            group: k.
            clip_part: is given the group as a view.
        """
        slots = [slot for slot, k in enumerate(self.groups) if k == group]
        clip_part(Part(self, slots))
        self.forget_slots(slots)

    def doubts(self) -> list[str]:
        return self.evidence.doubts() if self.evidence is not None else []

    def settle(self) -> None:
        """Finish the view, once the pass is complete and checked."""
        return None

    def forget(self, kept: Container[int] = ()) -> None:
        """Keep the norms alone, but for some parameters.

        Args:
            kept: indices of parameters whose gradients stay.
        """
        self.forget_slots([slot for slot in range(len(self.groups)) if slot not in kept])
        for slot in range(len(self.groups)):
            if self.saw(slot):
                self._squared(slot)
        self.forgotten = True

    def forget_slots(self, slots: Iterable[int]) -> None:
        """Keep these parameters' norms alone.

        Args:
            slots: indices of parameters.
        """
        for slot in slots:
            if self._uses[slot]:
                self._squared(slot)
                self._uses[slot].clear()

    def squared_norms(self) -> Tensor:
        return self.squared_norms_of(range(len(self.groups)))

    def squared_norms_of(self, slots: Iterable[int]) -> Tensor:
        """Return `squared_norms` as if these were the only parameters.

        Args:
            slots: indices of parameters.

        Returns:
            float64, [K, B]; infinite for dummies.
        """
        norms = [(self.groups[slot], self._squared(slot)) for slot in slots if self.saw(slot)]
        device = norms[0][1].device if norms else torch.device("cpu")
        squares = torch.zeros(max(self.groups) + 1, self.units, dtype=torch.float64, device=device)
        for group, norm in norms:
            squares[group] += norm
        squares *= self.scale**2
        if self.present is not None:
            squares.masked_fill_(~self.present.to(device), torch.inf)
        return squares

    def weighted_sum(self, factors: Tensor, into: Sums) -> None:
        """Add sum_i factors[k, i] g_i[k] of all parameters that still have their gradients.

        Args:
            factors: [K, B].
            into: one sum a parameter, on the sum scale.
        """
        self.add_slots(range(len(self.groups)), factors, into)

    def add_slots(self, slots: Iterable[int], factors: Tensor, into: Sums) -> None:
        """Add `weighted_sum` of some parameters.

        Samples with factor 0 are not read where that could matter.

        Args:
            slots: indices of parameters.
            factors: [K, B].
            into: one sum a parameter, on the sum scale.
        """
        for slot in slots:
            if self._uses[slot]:
                own = factors[self.groups[slot]]
                unread = (own == 0) & ~self._squared(slot).isfinite().to(own.device)
                keep = ~unread if bool(unread.any()) else None
                self._add(slot, own * self.scale, into, keep)

    def tensors(self) -> list[Tensor]:
        return [tensor for uses in self._uses for use in uses for tensor in use.tensors()]

    def size_of(self, slot: int) -> float:
        """Return the root of the summed squared norms of one parameter's finite gradients.

        Args:
            slot: the parameter's index.

        Returns:
            on the scale of the sum over units.
        """
        if not self.saw(slot):
            return 0.0
        return self.scale * float(self._squared(slot).nan_to_num(0.0, 0.0, 0.0).sum().sqrt())

    def sum_of(self, slot: int, like: Tensor) -> Tensor:
        """Add one parameter's gradients up, without factors.

        Args:
            slot: the parameter's index.
            like: the parameter, for shape and device.

        Returns:
            the sum over units, in the parameter's shape, float32 or wider.
        """
        total = torch.zeros_like(like, dtype=accumulation_dtype(like.dtype))
        ones = torch.full((self.units,), float(self.scale), dtype=total.dtype, device=like.device)
        with exact_products():
            self._by_unit(slot).add_weighted(ones, total)
        return total

    def samples(self, slot: int) -> Tensor | None:
        """Write one parameter's gradients out.

        Args:
            slot: the parameter's index.

        Returns:
            [units, *shape], float32 or wider; None if the parameter was not used.
        """
        if not self._uses[slot]:
            return None
        samples = self._by_unit(slot).materialized().samples
        return samples.to(accumulation_dtype(samples.dtype)) * self.scale

    def map_samples(
        self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]
    ) -> FactoredView:
        """Write each parameter's gradients out, and change them, as `PerSampleView` says.

        Raises:
            RuntimeError: the gradients were forgotten.
        """
        if self.forgotten:
            raise RuntimeError("the gradients are gone: make the backend with materialized=True")
        device = next((tensor.device for tensor in self.tensors()), torch.device("cpu"))
        changed = FactoredView(self.groups, self.units, 1, 1.0, self.evidence, self.present)
        for slot, size in enumerate(sizes):
            samples = self.samples(slot)
            if samples is None:
                samples = torch.zeros(self.units, size, device=device)
            changed.add(slot, Dense(change(slot, samples.reshape(self.units, size))))
        return changed

    def _by_unit(self, slot: int) -> Factored:
        """Return all uses of a parameter as one, a row a unit, in place of the uses from now on."""
        if not self._by_units[slot]:
            whole = joined(self._uses[slot])
            self._uses[slot] = [whole if self.rows_each == 1 else whole.by_unit(self.units)]
            self._by_units[slot] = True
        return self._uses[slot][0]

    def _squared(self, slot: int) -> Tensor:
        known = self._norms[slot]
        if known is None:
            with exact_products():
                known = self._norms[slot] = self._by_unit(slot).squared_norms()
        return known

    def _add(self, slot: int, factors: Tensor, into: Sums, keep: Tensor | None) -> None:
        form = self._by_unit(slot)
        factors, keep = factors.to(form.device), None if keep is None else keep.to(form.device)
        with exact_products():
            into.take(slot, form, factors, keep)


class Part:
    """Some parameters of a view, as a view."""

    def __init__(self, whole: FactoredView, slots: Sequence[int]) -> None:
        self._whole, self._slots = whole, list(slots)

    def squared_norms(self) -> Tensor:
        return self._whole.squared_norms_of(self._slots)

    def weighted_sum(self, factors: Tensor, into: Sums) -> None:
        """Add the gradients of these parameters alone, weighted.

        Args:
            factors: [K, B].
            into: one sum a parameter, on the sum scale.
        """
        self._whole.add_slots(self._slots, factors, into)

    def map_samples(
        self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]
    ) -> PerSampleView:
        raise RuntimeError(
            "a rule that changes coordinates sees all parameters at once: it cannot be separable"
        )

    def doubts(self) -> list[str]:
        return self._whole.doubts()

    def tensors(self) -> list[Tensor]:
        return self._whole.tensors()
