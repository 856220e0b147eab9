"""DiceSGD: what clipping cuts off is kept as a private error and fed back within its own bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule, RunShape
from dpclip.errors import InputError
from dpclip.gradient_sum import GradientSum
from dpclip.released import Released, StepRelease, Sum

# In `literal` and `leaky` the error takes in unclipped gradients, whose size their proofs do not
# mind. A gradient this many thresholds long is shortened all the same, so that no sample can drive
# the error beyond float32.
_FINITE = 1e6
_LEAK = math.sqrt(8.0)

_ASSUMED = (
    "every per-sample gradient is bounded as the published theorem for DiceSGD assumes, and its "
    "constant, which could not be verified, is right"
)


@RULES.register
@dataclass
class ErrorFeedback(ClippingRule):
    """Release v = sum_i clip(g_i, C1) + clip(e, C2); the error e takes up what v left out.

    e is never released. On the scale of sums, with B the public expected batch and
    P = clip(., B C2):

        v     = sum_i clip(g_i, C1) + P(e)
        e_new = residual(e - P(e)) + sum_i clip(g_i, C3) - sum_i clip(g_i, C1)

    | mode     | residual    | C3   | batches | sensitivity S of what is released                |
    |----------|-------------|------|---------|--------------------------------------------------|
    | one-step | 0           | cap  | halves  | sqrt(C1^2 + min(2 B C2, C3 - C1)^2), each pair   |
    | capped   | e - P(e)    | cap  | passes  | sqrt(k) C1 + k (C3 - C1), all steps together     |
    | leaky    | P(e - P(e)) | none | passes  | sqrt(k) (C1 + sqrt(8) B C2)                      |
    | literal  | e - P(e)    | none | passes  | sqrt(k) C1 + 2 B C2 sqrt(T)                      |

    k is the number of passes, T of steps; capped with k = 1: sqrt(C1^2 + (C3 - C1)^2). `literal` is
    the paper's algorithm, `leaky` its published code's residual. The four sensitivities are derived
    in docs/explanation/error-feedback.md.

    Args:
        max_grad_norm: C1.
        error_norm: C2, on the scale of the mean; at least C1 removes clipping's bias (paper). By
            default C1, and C1 / B in the modes whose sensitivity grows with it. With 0 there is no
            feedback.
        cap: C3, at least C1; by default 2 C1.
        mode: "one-step", "capped", "leaky" or "literal".
        calibration: "proved", or "published": noise C1 sqrt(1 + 2 B C2 / C1) over Poisson batches,
            as in the authors' code, with which the guarantee is conditional. An audit of `literal`
            at the published calibration exceeds its epsilon many times over when gradients are not
            bounded.

    Error and v are float64 until the noise is added; S is enlarged by what rounding v to float32
    would add, in every step that a unit's trace may move, which is far more.

    Edge cases: an empty batch still releases P(e). A sample that is not finite enters neither sum.

    Reference: Zhang, Bu, Wu, Hong, "Differentially Private SGD Without Clipping Bias: An
    Error-Feedback Approach", 2024 (arXiv 2311.14632).
    """

    max_grad_norm: float = 1.0
    error_norm: float | None = None
    cap: float | None = None
    mode: str = "one-step"
    calibration: str = "proved"
    name: ClassVar[str] = "dice"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        if self.mode not in _MODES:
            raise InputError(f"mode {self.mode!r} is unknown: choose one of {', '.join(_MODES)}")
        if self.calibration not in ("proved", "published"):
            raise InputError(
                f"calibration {self.calibration!r} is unknown: choose one of proved, published"
            )
        if self.error_norm is not None and not 0 <= self.error_norm < math.inf:
            raise InputError(
                f"error_norm = {self.error_norm}: a finite threshold on the error, 0 or more"
            )
        if self.cap is not None and not self.max_grad_norm <= self.cap < math.inf:
            raise InputError(
                f"cap = {self.cap} is not between max_grad_norm = {self.max_grad_norm} and infinity"
            )
        self._shape = RunShape(1, 1, 1)
        self._error: GradientSum | None = None
        self._next: GradientSum | None = None
        self._restored: dict[str, Tensor] = {}

    # --- what it promises -------------------------------------------------------------------------

    @property
    def sampling(self) -> str:  # type: ignore[override]
        return "poisson" if self.calibration == "published" else _MODES[self.mode].sampling

    @property
    def assumption(self) -> str | None:  # type: ignore[override]
        return _ASSUMED if self.calibration == "published" else None

    def set_run(self, shape: RunShape) -> None:
        """Keep the plan's expected batch B, steps T and passes k, which S depends on.

        Args:
            shape: of the run; public.
        """
        self._shape = shape

    @property
    def thresholds(self) -> tuple[float, float, float]:
        """C1, C2 and C3 on the scale of sums: C2 is multiplied by B."""
        batch, first = self._shape.expected_batch_size, self.max_grad_norm
        mode = _MODES[self.mode]
        second = (
            first * (batch if mode.capped else 1)
            if self.error_norm is None
            else self.error_norm * batch
        )
        third = (self.cap or 2 * first) if mode.capped else first * _FINITE
        return first, second, third

    @property
    def capped(self) -> bool:
        """Whether C3 bounds a sample's part in the error."""
        return _MODES[self.mode].capped

    def bounds(self) -> list[float]:
        first, second, third = self.thresholds
        if self.calibration == "published":
            return [first * math.sqrt(1 + 2 * second / first)]
        return [_MODES[self.mode].sensitivity(first, second, third, self._shape)]

    def limits(self) -> dict[str, list[float]]:
        first, _, third = self.thresholds
        return {"release": [first], "capped": [third]}

    # --- the step ---------------------------------------------------------------------------------

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Scale each gradient to norm at most C1 for the release and at most C3 for the error.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], "capped": factors [1, B]}, all in [0, 1].
        """
        first, _, third = self.thresholds
        return {"release": (first / norms).clamp(max=1.0), "capped": (third / norms).clamp(max=1.0)}

    def combine(self, sums: Mapping[str, Sum]) -> GradientSum:
        """Add P(e) to the clipped sum and work out the error that follows.

        Args:
            sums: "release" and "capped", on the sum scale; sensitive.

        Returns:
            v in float64, on the sum scale; sensitive until noise is added.
        """
        clipped, capped = (_in_float64(sums[name]) for name in ("release", "capped"))
        error = self._current(clipped)
        fed_back = shortened(error, self.thresholds[1])
        rest = [e - p for e, p in zip(error, fed_back, strict=True)]
        left = _MODES[self.mode].residual(rest, self.thresholds[1])
        for kept, longer, shorter in zip(left, capped.tensors, clipped.tensors, strict=True):
            kept.add_(longer).sub_(shorter)
        self._next = GradientSum(left, clipped.groups)
        totals = [total + part for total, part in zip(clipped.tensors, fed_back, strict=True)]
        return GradientSum(totals, clipped.groups, clipped.dtypes)

    def observe(self, released: Released[StepRelease]) -> None:
        """Put the new error in force, now that the step has been released.

        Args:
            released: unused; that it exists is what counts.
        """
        self._error, self._next = self._next, None

    def forget_unreleased(self) -> None:
        self._error, self._next, self._restored = None, None, {}

    def _current(self, like: GradientSum) -> list[Tensor]:
        if self._error is not None:
            return self._error.tensors
        found = [self._restored.get(str(i)) for i in range(len(like.tensors))]
        self._restored = {}
        return [
            torch.zeros_like(t, dtype=torch.float64)
            if e is None
            else e.to(t.device, torch.float64).view_as(t)
            for e, t in zip(found, like.tensors, strict=True)
        ]

    # --- state: private ---------------------------------------------------------------------------

    def tensor_state(self) -> dict[str, Tensor]:
        """Return the error, which holds raw gradients: private checkpoints only."""
        if self._error is None:
            return dict(self._restored)
        return {str(index): tensor for index, tensor in enumerate(self._error.tensors)}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        self._error, self._restored = None, dict(state)

    def describe(self) -> dict[str, Any]:
        first, second, third = self.thresholds
        fields: dict[str, Any] = {
            "rule": self.name,
            "mode": self.mode,
            "C1": first,
            "C2 (sum)": second,
        }
        if _MODES[self.mode].capped:
            fields["C3"] = third
        if self._shape.participations is not None:
            fields["passes"] = self._shape.participations
        calibration = "published (conditional)" if self.calibration == "published" else "proved"
        return {**fields, "sensitivity": self.bounds()[0], "calibration": calibration}


def _in_float64(total: Sum) -> GradientSum:
    return GradientSum(
        [tensor.double() for tensor in total.tensors], list(total.groups), list(total.dtypes)
    )


def shortened(tensors: list[Tensor], threshold: float) -> list[Tensor]:
    """Scale all tensors alike so that their joint norm is at most the threshold.

    Args:
        tensors: one a parameter, of any shapes.
        threshold: largest joint L2 norm, at least 0.

    Returns:
        new tensors of the same shapes.
    """
    square = sum(
        (t.double().square().sum() for t in tensors), start=torch.zeros((), dtype=torch.float64)
    )
    norm = float(square.sqrt()) * (1 + 1e-6)  # scaling rounds each element once more
    factor = min(1.0, threshold / norm) if norm > 0 else 1.0
    return [t * factor for t in tensors]


# --- the four modes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mode:
    """How a mode keeps the error, and what one unit can move in all that is released.

    Attributes:
        sampling: the batches that its proof is for.
        capped: whether C3 bounds a sample's part in the error.
        residual: e - P(e) and the threshold of P -> what is kept of it.
        sensitivity: C1, C2, C3 on the scale of sums, and the run's shape -> S.
    """

    sampling: str
    capped: bool
    residual: Callable[[list[Tensor], float], list[Tensor]]
    sensitivity: Callable[[float, float, float, RunShape], float]


def _rounding(first: float, second: float, shape: RunShape, steps: int) -> float:
    """Bound what rounding v to float32 may add over `steps` steps.

    Two half units in the last place of 2 B C1 + 2 B C2, where `second` is B C2.
    """
    return math.sqrt(steps) * 2.0**-23 * (2 * shape.expected_batch_size * first + 2 * second)


def _one_step(first: float, second: float, third: float, shape: RunShape) -> float:
    return math.hypot(first, min(2 * second, third - first)) + _rounding(first, second, shape, 1)


def _capped(first: float, second: float, third: float, shape: RunShape) -> float:
    passes = shape.participations or 1
    whole = math.sqrt(passes) * first + passes * (third - first)
    if passes == 1:
        whole = math.hypot(first, third - first)
    return whole + _rounding(first, second, shape, shape.steps)


def _leaky(first: float, second: float, third: float, shape: RunShape) -> float:
    whole = math.sqrt(shape.participations or 1) * (first + _LEAK * second)
    return whole + _rounding(first, second, shape, shape.steps)


def _literal(first: float, second: float, third: float, shape: RunShape) -> float:
    whole = math.sqrt(shape.participations or 1) * first + 2 * second * math.sqrt(shape.steps)
    return whole + _rounding(first, second, shape, shape.steps)


def _nothing(rest: list[Tensor], threshold: float) -> list[Tensor]:
    return [torch.zeros_like(t) for t in rest]


def _all(rest: list[Tensor], threshold: float) -> list[Tensor]:
    return rest


_MODES = {
    "one-step": _Mode("halves", True, _nothing, _one_step),
    "capped": _Mode("passes", True, _all, _capped),
    "leaky": _Mode("passes", False, shortened, _leaky),
    "literal": _Mode("passes", False, _all, _literal),
}
