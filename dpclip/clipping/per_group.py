"""A threshold for each group of parameters: each layer, block or tensor, or groups of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule
from dpclip.errors import InputError

_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
Grouping = Callable[[str], Hashable]


def is_adapter(name: str) -> bool:
    """Whether a parameter is a part of a LoRA adapter.

    Args:
        name: its full dotted name.
    """
    return any(half in name.split(".") for half in _ADAPTERS)


def layer_of(name: str) -> str:
    """Return the layer that owns a parameter.

    A weight and its bias have the same layer, and so do the two halves of a LoRA adapter.

    Args:
        name: the parameter's full dotted name.

    Returns:
        the module's dotted name, "" for parameters of the model itself.
    """
    path = name.split(".")
    for half in _ADAPTERS:
        if half in path:
            return ".".join(path[: path.index(half)])
    return ".".join(path[:-1])


def block_of(name: str) -> str:
    """Return the numbered block that owns a parameter, or its layer where there is none.

    Args:
        name: the parameter's full dotted name.

    Returns:
        its dotted name up to the first number, such as `transformer.h.3`.
    """
    path = layer_of(name).split(".")
    numbers = [i for i, part in enumerate(path) if part.isdigit()]
    return ".".join(path[: numbers[0] + 1]) if numbers else ".".join(path)


def tensor_of(name: str) -> str:
    """Return the parameter's own name: a group a parameter."""
    return name


def noise_shares(allocation: str, bounds: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Compute each group's share of 1/sigma^2, (C_k / s_k)^2 / sum_j (C_j / s_j)^2.

    s_k is the noise of group k's sum, as `allocation` chooses it.

    Args:
        allocation: "uniform": s_k equal; "proportional": s_k proportional to C_k;
            "minimum-variance": sum_k d_k s_k^2 is least, which s_k^2 proportional to C_k /
            sqrt(d_k) reaches (derived here with a Lagrange multiplier).
        bounds: C_k, [K], positive.
        sizes: d_k, elements of each group, [K].

    Returns:
        the shares, [K], summing to 1.
    """
    weigh = _ALLOCATIONS[allocation]
    weights = [weigh(bound, size) for bound, size in zip(bounds, sizes, strict=True)]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


_ALLOCATIONS: dict[str, Callable[[float, int], float]] = {
    "uniform": lambda bound, size: bound**2,
    "proportional": lambda bound, size: 1.0,
    "minimum-variance": lambda bound, size: bound * math.sqrt(size),
}


@dataclass
class PerGroup(ClippingRule):
    """factor_ik = min(1, C_k / ||g_ik||) for each group k of parameters.

    Args:
        max_grad_norm: C; the groups share it, C_k = C / sqrt(K), so that a sample's whole gradient
            has norm at most C.
        allocation: how the noise is shared out, see `noise_shares`; all cost the same privacy.
        group_of: the group of a parameter, by its name.
        thresholds: C_k by group, for groups whose threshold is not C / sqrt(K).

    Guarantee: one sample moves group k's sum by at most C_k.

    Edge cases: groups are clipped one by one inside the backward pass, so a gradient that is not
    finite is dropped in its group, and the sample's other groups count.

    Reference: McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language
    Models", 2018 (per-layer clipping); He et al., "Exploring the Limits of Differentially Private
    Deep Learning with Group-wise Clipping", 2023. The minimum-variance allocation is derived here.
    """

    max_grad_norm: float = 1.0
    allocation: str = "minimum-variance"
    group_of: Grouping = layer_of
    thresholds: dict[Hashable, float] = field(default_factory=dict)
    name: ClassVar[str] = "per-group"
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        for group, threshold in self.thresholds.items():
            check_threshold(f"the threshold of {group}", threshold)
        if self.allocation not in _ALLOCATIONS:
            raise InputError(
                f"allocation {self.allocation!r} is unknown: choose one of "
                f"{', '.join(_ALLOCATIONS)}"
            )
        self.group_names: list[Hashable] = [""]
        self._sizes = [1]

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the groups in the order in which the parameters first name them.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements.

        Returns:
            the group k of each parameter, 0 to K - 1.

        Raises:
            InputError: `thresholds` names a group that the model does not have.
        """
        owners = [self.group_of(name) for name in names]
        self.group_names = list(dict.fromkeys(owners))
        unknown = [group for group in self.thresholds if group not in self.group_names]
        if unknown:
            raise InputError(
                f"threshold for {unknown[0]}: there is no such group; the model has "
                f"{_some(self.group_names)}"
            )
        self._sizes = [
            sum(n for o, n in zip(owners, sizes, strict=True) if o == group)
            for group in self.group_names
        ]
        return [self.group_names.index(owner) for owner in owners]

    def bounds(self) -> list[float]:
        equal = self.max_grad_norm / math.sqrt(len(self.group_names))
        return [self.thresholds.get(group, equal) for group in self.group_names]

    def shares(self) -> list[float]:
        return noise_shares(self.allocation, self.bounds(), self._sizes)

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Scale each group of each gradient to norm at most C_k.

        Args:
            norms: L2 norms by group, [K, B].

        Returns:
            {"release": factors [K, B], in [0, 1]}.
        """
        return {"release": (column(self.bounds(), norms) / norms).clamp(max=1.0)}

    def describe(self) -> dict[str, Any]:
        bounds = [float(f"{bound:.6g}") for bound in self.bounds()]
        return {
            "rule": self.name,
            "groups": len(self.group_names),
            "thresholds": bounds,
            "allocation": self.allocation,
        }


@RULES.register
@dataclass
class PerLayer(PerGroup):
    """`PerGroup` with a group a layer."""

    name: ClassVar[str] = "per-layer"


@RULES.register
@dataclass
class PerBlock(PerGroup):
    """`PerGroup` with a group a numbered block of the model."""

    group_of: Grouping = block_of
    name: ClassVar[str] = "per-block"


@RULES.register
@dataclass
class PerTensor(PerGroup):
    """`PerGroup` with a group a parameter."""

    group_of: Grouping = tensor_of
    name: ClassVar[str] = "per-tensor"


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """Make a column [K, 1] of one value a group.

    Args:
        values: one a group, [K].
        like: the tensor whose dtype and device it gets.
    """
    return torch.tensor(list(values), dtype=like.dtype, device=like.device).unsqueeze(1)


def _some(groups: Sequence[Hashable]) -> str:
    shown = ", ".join(map(str, groups[:6]))
    return shown if len(groups) <= 6 else f"{shown}, … ({len(groups)} in all)"
