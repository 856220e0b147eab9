"""Models and gradients that are hard to add up: terms that cancel, heavy tails, numbers that are
none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.per_sample.forms.lookups import Lookups
from dpclip.per_sample.forms.outer_products import OuterProducts, Tied
from dpclip.per_sample.layers.convolution import Convolved, Geometry

POISON = {"nan": math.nan, "inf": math.inf, "minus inf": -math.inf, "largest": 3e38}
# of which nothing may be added, but for the rounding of others in another order
NOTHING = ("nan", "inf", "minus inf")
KINDS = ("plain", "cancelling", "one ulp", "one millionth", *POISON)

# --- models ---------------------------------------------------------------------------------------


class _Tied(nn.Module):
    """A table that is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(ids)))


@dataclass(frozen=True)
class Kind:
    """A model, what goes in and what its output's gradient looks like; T is the number of
    positions.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[int, ...]]
    targets: Callable[[int], tuple[int, ...]]
    words: int = 0


MODELS = {
    "linear": Kind(
        lambda: nn.Sequential(nn.Linear(18, 18), nn.Linear(18, 2)),
        lambda t: (t, 18),
        lambda t: (t, 2),
    ),
    "wide": Kind(lambda: nn.Linear(112, 112, bias=False), lambda t: (t, 112), lambda t: (t, 112)),
    "norms": Kind(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        lambda t: (t, 4),
        lambda t: (t, 3),
    ),
    "words": Kind(
        lambda: nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 4)),
        lambda t: (t,),
        lambda t: (t, 4),
        7,
    ),
    "tied": Kind(_Tied, lambda t: (t,), lambda t: (t, 9), 9),
    "images": Kind(lambda: nn.Conv1d(3, 4, 2), lambda t: (3, t + 1), lambda t: (4, t)),
}


@dataclass(frozen=True)
class Case:
    """Some units and one more, for one of `MODELS`.

    Attributes:
        model: a name of `MODELS`.
        positions: T.
        rows_each: rows a unit.
        kind: what the added unit is like.
        magnitude: of its output gradients.
        seed: of all that is drawn.
    """

    model: str
    positions: int
    rows_each: int
    kind: str
    magnitude: float
    seed: int
    dtype: torch.dtype = torch.float32

    def net(self) -> nn.Module:
        """The model."""
        torch.manual_seed(self.seed)
        return MODELS[self.model].make().to(self.dtype)

    def units(self, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, [count, rows, ...]; the last is the added one, and every third other
        cancels, too.
        """
        generator = torch.Generator().manual_seed(self.seed)
        kind, shape = MODELS[self.model], (count, self.rows_each)
        size = kind.inputs(self.positions)
        if kind.words:
            inputs = torch.randint(kind.words, (*shape, *size), generator=generator)
        else:
            inputs = torch.randn(*shape, *size, generator=generator).to(self.dtype)
        targets = torch.randn(*shape, *kind.targets(self.positions), generator=generator)
        sizes = torch.randint(-3, 6, (count, *[1] * (targets.dim() - 1)), generator=generator)
        targets = (targets * 10.0**sizes).to(self.dtype)
        for place in range(0, count - 1, 3):
            _cancel(inputs[place], targets[place], "cancelling", self.model != "images")
        targets[-1] *= self.magnitude
        if self.kind in POISON:
            (inputs if inputs.is_floating_point() and self.seed % 2 else targets)[-1].view(-1)[
                -1
            ] = POISON[self.kind]
        elif self.kind != "plain":
            _cancel(inputs[-1], targets[-1], self.kind, self.model != "images")
        return inputs, targets


def _cancel(inputs: Tensor, targets: Tensor, kind: str, by_position: bool) -> None:
    """Make one unit's rows (and positions, if they are the second dimension) equal, with targets
    that add up to 0.
    """
    if by_position:
        inputs, targets = inputs.flatten(0, 1), targets.flatten(0, 1)
    inputs[:], targets[:] = inputs[0].clone(), targets[0].clone()
    targets[1::2].neg_()
    if kind == "one ulp":
        targets[0] = torch.nextafter(targets[0], torch.full_like(targets[0], math.inf))
    elif kind == "one millionth":
        targets[0] *= 1 + 1e-6
    if len(targets) % 2 and len(targets) > 1:
        targets[-1] = 0


# --- forms ----------------------------------------------------------------------------------------


class Forms:
    """Draws forms of `units` units.

    Args:
        generator: of everything.
        units: how many.
        dtype: of the factors.
        tails: whether exponents vary from 2^-30 to 2^40.
        cancel: "", or how nearly the terms of some units cancel, as in `KINDS`.
    """

    def __init__(
        self, generator: torch.Generator, units: int, dtype: torch.dtype, tails: bool, cancel: str
    ) -> None:
        self.generator, self.units, self.dtype, self.tails, self.cancel = (
            generator,
            units,
            dtype,
            tails,
            cancel,
        )

    def draw(self, name: str, positions: int) -> Factored:
        """One form: "outer", "tied", "lookups", "dense" or "convolved"."""
        drawn: Factored = getattr(self, f"_{name}")(positions)
        return drawn

    def _normal(self, *shape: int) -> Tensor:
        wide = self.dtype if self.dtype == torch.float64 else torch.float32
        values = torch.randn(self.units, *shape, generator=self.generator, dtype=wide)
        if self.tails:
            lead = (self.units, shape[0], *[1] * (len(shape) - 1))
            values = values * torch.exp2(
                torch.randint(-30, 41, lead, generator=self.generator).to(wide) / 2
            )
        return values.to(self.dtype)

    def _size(self) -> tuple[int, int]:
        return [(1, 3), (8, 5), (3, 16), (2, 2)][
            int(torch.randint(4, (), generator=self.generator))
        ]

    def _outer(self, positions: int, size: tuple[int, int] | None = None) -> OuterProducts:
        p, d = size or self._size()
        left, right = self._normal(positions, p), self._normal(positions, d)
        if self.cancel:
            for unit in range(self.units % 2, self.units, 2):
                _cancel(left[unit], right[unit], self.cancel, False)
        return OuterProducts(left, right)

    def _lookups(self, positions: int, size: tuple[int, int] | None = None) -> Lookups:
        count, d = size or self._size()
        ids = torch.randint(count, (self.units, positions), generator=self.generator)
        values = self._normal(positions, d)
        if self.cancel:
            for unit in range(0, self.units, 2):
                _cancel(ids[unit], values[unit], self.cancel, False)
        return Lookups(ids, values, count)

    def _tied(self, positions: int) -> Tied:
        size = self._size()
        return Tied(self._outer(positions, size), self._lookups(positions, size))

    def _dense(self, positions: int) -> Dense:
        return Dense(self._normal(self._size()[1]))

    def _convolved(self, positions: int) -> Convolved:
        """Late layers, so that they are measured by Gram matrices."""
        channels, kernel = (24, 20), 3
        pixels = min(positions, 4) + 1
        inputs, grads = self._normal(channels[0], pixels), self._normal(channels[1], pixels)
        if self.cancel:  # equal neighbours, opposite gradients: inner positions cancel
            inputs[:] = inputs[:, :, :1]
            grads[:, :, 1::2] = -grads[:, :, :1]
            grads[:, :, ::2] = grads[:, :, :1]
        return Convolved(inputs.float(), grads.float(), Geometry((kernel,), (1,), (1,), (1,), 1))


def absorbed_column(base: int, step: float) -> Tensor:
    """One unit more tips a sum of `base` - 1/2 over the binade at `base`; the rest is below half a
    place there.

    Added one by one in a format whose places at `base` are `step` wide, the rest is lost or counts
    double.
    """
    near = 1 - 2.0**-18
    climb = [near] * (base - 1)
    return torch.tensor(
        [near, *climb, min(1.0, base - 0.5 - sum(climb)), *[-0.75 * step] * (base - 1)]
    )
