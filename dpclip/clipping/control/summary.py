"""What a controller is shown: a summary a step, made of released values alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpclip.clipping.control.coordinates import every_nth, sampling_stride
from dpclip.released import StepRelease

if TYPE_CHECKING:
    pass

_TINY = 1e-30


@dataclass(frozen=True)
class Summary:
    """One step, in numbers; K groups.

    Attributes:
        energy: squared norm of the released mean gradient, [K].
        noise: what noise alone contributes to it: coordinates times variance, [K].
        agreement: inner product with the step before, whose noise is independent; its expectation
            has no noise in it, [K].
        within: released share of units below the rule's own threshold, [K]; empty where none is
            released.
        loss: released mean of the clipped losses, if there is one.
        loss_noise: its noise standard deviation.
        blur: standard deviation of each agreement if there were nothing but noise, [K].
    """

    energy: tuple[float, ...]
    noise: tuple[float, ...]
    agreement: tuple[float, ...]
    within: tuple[float, ...] = ()
    loss: float | None = None
    loss_noise: float = 0.0
    blur: tuple[float, ...] = ()

    def shown(self) -> dict[str, float]:
        """Return the numbers worth a curve: the mean share within, and the loss."""
        share = {"share_within": sum(self.within) / len(self.within)} if self.within else {}
        return share if self.loss is None else {**share, "released_loss": self.loss}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Summary:
        """Undo `dataclasses.asdict` and a round trip through JSON.

        Args:
            fields: lists or numbers by field name.
        """
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, Sequence) else v for k, v in fields.items()
        }
        return cls(**values)


class Summariser:
    """Turns each step's release into a `Summary`, and remembers its gradient for the next.

    Args:
        owners: the group of each parameter.
        sizes: elements of each parameter.
        parents: which of the released shares is each group's, [K].
    """

    def __init__(self, owners: Sequence[int], sizes: Sequence[int], parents: Sequence[int]) -> None:
        self._owners, self._sizes, self._parents = list(owners), list(sizes), list(parents)
        self._groups = max(owners) + 1
        self._stride = sampling_stride(sizes)
        self._previous: list[Tensor] = []

    def summarise(self, step: StepRelease, loss_offset: float) -> Summary:
        """Sum up the step in numbers.

        Of models with more than `MOST` coordinates only some are looked at.

        Args:
            step: what the step released, on the scale of the mean.
            loss_offset: what was subtracted from each loss.
        """
        kept = [
            every_nth(gradient.detach().reshape(-1), self._stride) for gradient in step.gradient
        ]
        energy, agreement = [0.0] * self._groups, [0.0] * self._groups
        noise, coordinates = [0.0] * self._groups, [0] * self._groups
        squares = _dots(kept, kept)
        products = _dots(kept, self._previous) if self._previous else [0.0] * len(kept)
        for slot, (values, group) in enumerate(zip(kept, self._owners, strict=True)):
            energy[group] += squares[slot]
            noise[group] += values.numel() * step.coordinate_stds[slot] ** 2
            coordinates[group] += values.numel()
            agreement[group] += products[slot]
        self._previous = [values.clone() for values in kept]
        sides, stds = step.sides, step.side_stds
        shares = (sides["within"] / step.divisor + 0.5).tolist() if "within" in sides else []
        within = tuple(shares[parent] for parent in self._parents) if shares else ()
        loss = float(sides["loss"][0]) / step.divisor + loss_offset if "loss" in sides else None
        loss_noise = stds.get("loss", 0.0) / step.divisor
        blur = tuple(n / math.sqrt(max(1, d)) for n, d in zip(noise, coordinates, strict=True))
        return Summary(
            energy=tuple(energy),
            noise=tuple(noise),
            agreement=tuple(agreement),
            within=within,
            loss=loss,
            loss_noise=loss_noise,
            blur=blur,
        )

    def tensor_state(self) -> dict[str, Tensor]:
        """Return the last released gradient, as far as it is kept."""
        return {f"previous.{slot}": values for slot, values in enumerate(self._previous)}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `tensor_state`.

        Args:
            state: "previous.<slot>": the coordinates kept of each parameter, flat.
        """
        self._previous = [state[f"previous.{slot}"] for slot in range(len(state))]


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[float]:
    """Compute inner products, pair by pair; a GPU is waited for once."""
    return torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)]).tolist()
