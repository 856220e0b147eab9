"""What the optimizers of the clipping theory share: norms, clip factors, exact state.

Gradients that are not finite are met here, too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dpclip.checks import not_negative
from dpclip.errors import InputError
from dpclip.postprocess.clipper import POLICIES
from dpclip.postprocess.norms import squared_norms

TINY = 1e-30  # divisors are at least this, so that every step length is finite in float32
CLIPS = ("global", "tensor")


@dataclass
class Share:
    """One parameter group's part of a step; an entry for each parameter with a gradient.

    Attributes:
        group: the parameter group.
        parameters: the parameters.
        gradients: float32 where the parameter has 16 bits, else the gradients themselves, which
            nobody may change.
        norms: L2 norms of the gradients.
        factors: what the clipping multiplies each gradient by.
        together: L2 norm of the clipped gradients of all groups that are clipped together.
    """

    group: dict[str, Any]
    parameters: list[Tensor]
    gradients: list[Tensor]
    norms: list[float]
    factors: list[float]
    together: float = 0.0

    @property
    def per_tensor(self) -> bool:
        """Whether every tensor is clipped by its own norm."""
        return bool(self.group.get("clip", "global") == "tensor")

    def clipped(self) -> list[Tensor]:
        """Return the clipped gradients; the gradients themselves where nothing is clipped."""
        if all(factor == 1.0 for factor in self.factors):
            return self.gradients
        return list(
            torch._foreach_mul(self.gradients, self.factors if self.per_tensor else self.factors[0])
        )


class MeasuredOptimizer(Optimizer):
    """A `torch.optim.Optimizer` whose step depends on the norm of the gradient.

    The norm is that of all groups' gradients together, in float32 or wider, whatever the groups'
    own settings are. Groups with `clip="tensor"` are left out of it: each of their tensors is
    measured by itself.
    """

    # --- what a class adds ------------------------------------------------------------------------

    @abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Raise `InputError` for settings that cannot be used."""

    @abstractmethod
    def _factor(self, group: dict[str, Any], norm: float) -> float:
        """Return what a gradient of that norm is multiplied by."""

    @abstractmethod
    def _update(self, share: Share) -> None:
        """Move the share's parameters; the share may be empty."""

    # --- what all have ----------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, after a check of its settings.

        Args:
            param_group: parameters and settings; the defaults stand in for missing ones.

        Raises:
            InputError: a setting that cannot be used.
        """
        merged = {**self.defaults, **param_group}
        not_negative("lr", merged["lr"])
        one_of("nonfinite", merged["nonfinite"], POLICIES)
        one_of("clip", merged.get("clip", "global"), CLIPS)
        self._check(merged)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the gradients anew and returns the loss; called once, with autograd
                on.

        Returns:
            What the closure returns.

        Raises:
            InputError: a sparse or complex gradient.
            FloatingPointError: `nonfinite="raise"` and a gradient is not finite; nothing has
                changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shares = [_share(group) for group in self.param_groups]
        measure(shares)
        if any(share.parameters for share in shares) and not self._is_stopped(shares):
            self._clip(shares)
            for share in shares:
                self._update(share)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore as torch does, but in the precision that tensors were saved in.

        Args:
            state_dict: what `state_dict` returned; no tensor is shared with it afterwards.
        """
        super().load_state_dict(state_dict)
        ours = [p for group in self.param_groups for p in group["params"]]
        theirs = [key for group in state_dict["param_groups"] for key in group["params"]]
        for parameter, key in zip(ours, theirs, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    def _is_stopped(self, shares: Iterable[Share]) -> bool:
        """Whether a gradient that is not finite forbids the step."""
        bad = [share for share in shares if not all(math.isfinite(norm) for norm in share.norms)]
        policies = {share.group["nonfinite"] for share in bad}
        if "raise" in policies:
            raise FloatingPointError(
                "a gradient is not finite: lower the learning rate, or set nonfinite='skip'"
            )
        return "skip" in policies

    def _clip(self, shares: list[Share]) -> None:
        joint = [share for share in shares if not share.per_tensor]
        norm = math.hypot(*(norm for share in joint for norm in share.norms))
        for share in shares:
            norms = share.norms if share.per_tensor else [norm] * len(share.norms)
            share.factors = [self._factor(share.group, own) for own in norms]
        lengths = [
            f * n for share in joint for f, n in zip(share.factors, share.norms, strict=True)
        ]
        for share in joint:
            share.together = math.hypot(*lengths)


def _share(group: dict[str, Any]) -> Share:
    held = [p for p in group["params"] if p.grad is not None]
    for p in held:
        if p.grad.layout != torch.strided or p.is_complex():
            raise InputError(
                f"a gradient is {p.grad.layout}, {p.dtype}: give dense real gradients "
                "(sparse=False)"
            )
    return Share(group, held, [widened(p.grad) for p in held], [], [])


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 if it has 16 bits, else itself.

    Args:
        tensor: any shape.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def measure(shares: Iterable[Share]) -> None:
    """Fill in the norms, with one transfer from the device for all of them.

    Args:
        shares: whose gradients are read; `norms` of those that have any is replaced.
    """
    held = [share for share in shares if share.parameters]
    if not held:
        return
    found = iter(squared_norms([g for share in held for g in share.gradients]).sqrt().tolist())
    for share in held:
        share.norms = [next(found) for _ in share.gradients]


def clip_factor(norm: float, max_norm: float | None) -> float:
    """Compute min(1, max_norm / norm).

    Args:
        norm: of a gradient, at least 0.
        max_norm: in the same units; None or infinity leaves the gradient unclipped.

    Returns:
        a factor in [0, 1]; 1 for a gradient of norm 0.
    """
    if max_norm is None or norm <= max_norm or max_norm == math.inf:
        return 1.0
    return max_norm / norm


# --- settings -------------------------------------------------------------------------------------


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse an unknown choice.

    Args:
        name: of the setting, for the message.
        value: what was chosen.
        choices: the known ones.

    Raises:
        InputError: the value is none of them.
    """
    if value not in choices:
        raise InputError(f"{name} is {value!r}, which is unknown; choose {', '.join(choices)}")
