"""The one plan object: sampler, divisor, noise and accounting read the same numbers (law 2)."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from numbers import Integral
from typing import Any

from accounting import (
    Adjacency,
    Event,
    NonPrivate,
    calibrate_noise_multiplier,
    compare,
)
from dpclip.errors import BadInput
from dpclip.schemes import Charges, Scheme, added_up, scheme_of

ARITHMETICS = ("exact", "fast")


@dataclass(frozen=True)
class Plan:
    """Everything that the privacy of a run depends on, fixed before the first sample is drawn.

    Attributes:
        units: number of privacy units N, a public number.
        expected_batch_size: expected units a logical batch, the divisor of the released sum.
        steps: planned logical steps, an integer chosen first.
        noise_multiplier: sigma_eff of one step, noise standard deviation over L2 sensitivity; 0 without privacy.
        delta: the delta of the guarantee.
        target_epsilon: the budget; infinity trains without privacy.
        accountant: "prv" or "rdp", the accountant whose figure is the guarantee.
        adjacency: neighbouring relation.
        unit: what one unit of privacy is, in words.
        sampling: how batches are drawn, and with it how steps compose (`schemes.py`).
        arithmetic: "exact", sums and noise without rounding error, or "fast", float32 products.
    """

    units: int
    expected_batch_size: int
    steps: int
    noise_multiplier: float
    delta: float
    target_epsilon: float
    accountant: str = "prv"
    adjacency: Adjacency = "add-remove"
    unit: str = "one row of the training data"
    sampling: str = "poisson"
    arithmetic: str = "exact"

    def __post_init__(self) -> None:
        # One type each, whatever was given, so that a plan read back from JSON is the same plan with the same digest.
        for name in ("units", "expected_batch_size", "steps"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in ("noise_multiplier", "delta", "target_epsilon"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.units < 1:
            raise BadInput(f"units = {self.units}: there is nothing to train on; give at least one record")
        if not 1 <= self.expected_batch_size <= self.units:
            raise BadInput(
                f"batch size {self.expected_batch_size} is impossible with N = {self.units} units: "
                f"choose a batch size between 1 and {self.units}"
            )
        if self.steps < 1:
            raise BadInput(f"steps = {self.steps}: train for at least one step")
        if not 0 <= self.noise_multiplier < math.inf:
            raise BadInput(f"noise_multiplier = {self.noise_multiplier}: a number from 0 to below infinity is needed")
        if self.arithmetic not in ARITHMETICS:
            raise BadInput(f"arithmetic {self.arithmetic!r} is unknown: choose one of {', '.join(ARITHMETICS)}")
        self.scheme.check(self)

    @property
    def private(self) -> bool:
        """Whether the run promises anything."""
        return math.isfinite(self.target_epsilon)

    @property
    def scheme(self) -> Scheme:
        """How batches are drawn."""
        return scheme_of(self.sampling)

    @property
    def sample_rate(self) -> float:
        """Probability that a unit is in a batch that may draw it. The sampler's realised rate is never above it."""
        exact = self.scheme.rate(self)
        nearest = float(exact)
        return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, 1.0)

    def event(self, noise_multiplier: float | None = None) -> Event:
        """What one step releases, in units of its own sensitivity."""
        if not self.private:
            return NonPrivate("trained with epsilon = inf: no noise was added")
        sigma = self.noise_multiplier if noise_multiplier is None else noise_multiplier
        return self.scheme.event(self, sigma)

    def spent(self, charges: Charges) -> Counter[Event]:
        """What the charged steps cost together."""
        return self.scheme.spent(self, charges) if self.private else added_up(charges)

    @property
    def whole(self) -> tuple[Event, int]:
        """What all planned steps cost together: an event and its count."""
        return self.scheme.whole(self) if self.private else (self.event(), self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values, infinity as the string "inf"."""
        fields = asdict(self)
        if not self.private:
            fields["target_epsilon"] = "inf"
        if self.sampling == "poisson":
            del fields["sampling"]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Plan:
        """The inverse of `to_json`.

        Raises:
            BadInput: an earlier version wrote it.
        """
        check_arithmetic_recorded(fields)
        return cls(**{**fields, "target_epsilon": float(fields["target_epsilon"])})

    def digest(self) -> str:
        """Identity of the plan: a resumed run must have the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def check_arithmetic_recorded(fields: dict[str, Any]) -> None:
    """Refuse the plan of a run that added up and drew noise in another way: nothing of it can be replayed.

    Raises:
        BadInput: the fields of a plan do not name its arithmetic.
    """
    if "arithmetic" not in fields:
        raise BadInput(
            "this run was begun by an earlier version, whose sums and noise were computed otherwise, so it cannot be "
            "continued: its report and what it spent stand; start a new run"
        )


def whole_number(name: str, value: Any) -> int:
    """A count of any integral type, numpy's included, as an int.

    Raises:
        BadInput: a fraction, a truth value, or a real number that happens to be whole.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise BadInput(f"{name} = {value}: a whole number is needed")
    return int(value)


def default_delta(units: int) -> float:
    """min(1e-5, 1/(10 N)): well below 1/N, at which publishing one random record would pass."""
    return min(1e-5, 1 / (10 * units))


def check_target(epsilon: float, delta: float, units: int) -> None:
    """Refuse budgets that mean nothing.

    Raises:
        BadInput: epsilon not positive, delta outside (0, 1/N).
    """
    if not epsilon > 0:
        raise BadInput(f"epsilon = {epsilon}: a budget must be positive; 8 is a common start, inf for none")
    if not 0 < delta < 1:
        raise BadInput(f"delta = {delta}: a probability strictly between 0 and 1 is needed, well below 1/N")
    if delta >= 1 / units:
        raise BadInput(
            f"delta = {delta:g} is not below 1/N = {1 / units:.3g} (N = {units}): publishing one record outright "
            f"would satisfy it; choose at most {default_delta(units):.2g}"
        )


def steps_for(units: int, expected_batch_size: int, epochs: float) -> int:
    """Logical steps that visit each unit `epochs` times on average: round(E N / B), at least 1."""
    if not epochs > 0 or not math.isfinite(epochs):
        raise BadInput(f"epochs = {epochs}: a positive number is needed")
    return max(1, round(Fraction(epochs) * units / max(1, expected_batch_size)))


def make_plan(
    *,
    units: int,
    expected_batch_size: int,
    target_epsilon: float,
    target_delta: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    accountant: str = "prv",
    adjacency: Adjacency = "add-remove",
    unit: str = "one row of the training data",
    noise_multiplier: float | None = None,
    sampling: str = "poisson",
    arithmetic: str = "exact",
) -> Plan:
    """Choose the steps, then the smallest noise that keeps the whole run within (epsilon, delta).

    Args:
        units: N, public.
        expected_batch_size: B; the sample rate is exactly B / N.
        target_epsilon: the budget, or infinity.
        target_delta: defaults to `default_delta(units)`.
        epochs: passes over the data; or give `steps`.
        noise_multiplier: skip the calibration and use this one (its epsilon must still be within the budget,
            which the ledger checks step by step).
        sampling: what the clipping rule asks for.
        arithmetic: "exact" or "fast".

    Raises:
        BadInput: meaningless or contradictory values.
    """
    if (epochs is None) == (steps is None):
        raise BadInput("give the length of training once: either epochs or steps")
    units = whole_number("units", units)
    expected_batch_size = whole_number("expected_batch_size", expected_batch_size)
    delta = default_delta(units) if target_delta is None else target_delta
    check_target(target_epsilon, delta, units)
    count = steps_for(units, expected_batch_size, epochs) if steps is None else steps  # type: ignore[arg-type]
    draft = Plan(
        units, expected_batch_size, count, 0.0, delta, target_epsilon, accountant, adjacency, unit, sampling, arithmetic
    )
    if not draft.private:
        return draft
    if noise_multiplier is not None:
        return replace(draft, noise_multiplier=noise_multiplier)
    planned = _calibrated(draft)
    if accountant != "rdp" and _reported(planned) > target_epsilon:
        # The opinions differ on this schedule, so the statement will report the largest: plan for that one.
        planned = _calibrated(replace(draft, accountant="rdp"))
    return planned


def _calibrated(draft: Plan) -> Plan:
    found = calibrate_noise_multiplier(
        draft.target_epsilon, draft.delta, draft.sample_rate, replace(draft, noise_multiplier=1.0).whole[1],
        adjacency=draft.adjacency, accountant=draft.accountant,
    )  # fmt: skip
    return replace(draft, noise_multiplier=draft.scheme.noise_multiplier(draft, found.noise_multiplier))


def _reported(plan: Plan) -> float:
    """What a statement on the whole plan would say."""
    return compare([plan.whole], plan.delta, adjacency=plan.adjacency, accountant=plan.accountant).epsilon
