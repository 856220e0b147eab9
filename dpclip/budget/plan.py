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
from dpclip.errors import InputError
from dpclip.sampling import SCHEMES, Charges, Schedule, Scheme, added_up

ARITHMETICS = ("exact", "fast")


@dataclass(frozen=True)
class Plan(Schedule):
    """Everything that the privacy of a run depends on: a schedule, and how it is drawn and
    accounted for.

    Attributes:
        accountant: "prv" or "rdp", the accountant whose figure is the guarantee.
        unit: what one unit of privacy is, in words.
        sampling: how batches are drawn, and with it how steps compose: a name of
            `dpclip.sampling.SCHEMES`.
        arithmetic: "exact", sums and noise without rounding error, or "fast", float32 products.
        noise: what is added to each step's sum: a name of `dpclip.noise.mechanisms.MECHANISMS`.
    """

    accountant: str = "prv"
    unit: str = "one row of the training data"
    sampling: str = "poisson"
    arithmetic: str = "exact"
    noise: str = "white-gaussian"

    def __post_init__(self) -> None:
        # One type each, whatever was given, so that a plan read back from JSON is the same plan
        # with the same digest.
        for name in ("units", "expected_batch_size", "steps"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in ("noise_multiplier", "delta", "target_epsilon"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.units < 1:
            raise InputError(
                f"units = {self.units}: there is nothing to train on; give at least one record"
            )
        if not 1 <= self.expected_batch_size <= self.units:
            raise InputError(
                f"batch size {self.expected_batch_size} is impossible with N = {self.units} units: "
                f"choose a batch size between 1 and {self.units}"
            )
        if self.steps < 1:
            raise InputError(f"steps = {self.steps}: train for at least one step")
        if not 0 <= self.noise_multiplier < math.inf:
            raise InputError(
                f"noise_multiplier = {self.noise_multiplier}: a number from 0 to below infinity is "
                "needed"
            )
        if self.arithmetic not in ARITHMETICS:
            raise InputError(
                f"arithmetic {self.arithmetic!r} is unknown: choose one of {', '.join(ARITHMETICS)}"
            )
        self.scheme.check(self)

    @property
    def scheme(self) -> Scheme:
        """How batches are drawn."""
        return SCHEMES.make(self.sampling)

    @property
    def sample_rate(self) -> float:
        """Probability that a unit is in a batch that may draw it.

        The sampler's realised rate is never above it.
        """
        return self.scheme.sample_rate(self)

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
        for name, usual in (("sampling", "poisson"), ("noise", "white-gaussian")):
            if fields[name] == usual:  # as plans were written before there was a choice
                del fields[name]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Plan:
        """The inverse of `to_json`.

        Raises:
            InputError: an earlier version wrote it.
        """
        check_arithmetic_recorded(fields)
        return cls(**{**fields, "target_epsilon": float(fields["target_epsilon"])})

    def digest(self) -> str:
        """Identity of the plan: a resumed run must have the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def check_arithmetic_recorded(fields: dict[str, Any]) -> None:
    """Refuse the plan of a run that added up and drew noise in another way: nothing of it can be
    replayed.

    Raises:
        InputError: the fields of a plan do not name its arithmetic.
    """
    if "arithmetic" not in fields:
        raise InputError(
            "this run was begun by an earlier version, whose sums and noise were computed "
            "otherwise, so it cannot be continued: its report and what it spent stand; start a new "
            "run"
        )


def whole_number(name: str, value: Any) -> int:
    """A count of any integral type, numpy's included, as an int.

    Raises:
        InputError: a fraction, a truth value, or a real number that happens to be whole.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} = {value}: a whole number is needed")
    return int(value)


def default_delta(units: int) -> float:
    """min(1e-5, 1/(10 N)): well below 1/N, at which publishing one random record would pass."""
    return min(1e-5, 1 / (10 * units))


def check_target(epsilon: float, delta: float, units: int) -> None:
    """Refuse budgets that mean nothing.

    Raises:
        InputError: epsilon not positive, delta outside (0, 1/N).
    """
    if not epsilon > 0:
        raise InputError(
            f"epsilon = {epsilon}: a budget must be positive; 8 is a common start, inf for none"
        )
    if not 0 < delta < 1:
        raise InputError(
            f"delta = {delta}: a probability strictly between 0 and 1 is needed, well below 1/N"
        )
    if delta >= 1 / units:
        raise InputError(
            f"delta = {delta:g} is not below 1/N = {1 / units:.3g} (N = {units}): publishing one "
            f"record outright would satisfy it; choose at most {default_delta(units):.2g}"
        )


def steps_for(units: int, expected_batch_size: int, epochs: float) -> int:
    """Logical steps that visit each unit `epochs` times on average: round(E N / B), at least 1."""
    if not epochs > 0 or not math.isfinite(epochs):
        raise InputError(f"epochs = {epochs}: a positive number is needed")
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
        noise_multiplier: skip the calibration and use this one (its epsilon must still be within
            the budget, which the ledger checks step by step).
        sampling: what the clipping rule asks for.
        arithmetic: "exact" or "fast".

    Raises:
        InputError: meaningless or contradictory values.
    """
    if (epochs is None) == (steps is None):
        raise InputError("give the length of training once: either epochs or steps")
    units = whole_number("units", units)
    expected_batch_size = whole_number("expected_batch_size", expected_batch_size)
    delta = default_delta(units) if target_delta is None else target_delta
    check_target(target_epsilon, delta, units)
    count = steps_for(units, expected_batch_size, epochs) if steps is None else steps  # type: ignore[arg-type]
    draft = Plan(
        units,
        expected_batch_size,
        count,
        0.0,
        delta,
        target_epsilon,
        adjacency=adjacency,
        accountant=accountant,
        unit=unit,
        sampling=sampling,
        arithmetic=arithmetic,
    )
    if not draft.private:
        return draft
    if noise_multiplier is not None:
        return replace(draft, noise_multiplier=noise_multiplier)
    planned = _calibrated(draft)
    if accountant != "rdp" and _reported(planned) > target_epsilon:
        # The opinions differ on this schedule, so the statement will report the largest: plan for
        # that one.
        planned = _calibrated(replace(draft, accountant="rdp"))
    return planned


def _calibrated(draft: Plan) -> Plan:
    found = calibrate_noise_multiplier(
        draft.target_epsilon,
        draft.delta,
        draft.sample_rate,
        replace(draft, noise_multiplier=1.0).whole[1],
        adjacency=draft.adjacency,
        accountant=draft.accountant,
    )
    return replace(
        draft, noise_multiplier=draft.scheme.noise_multiplier(draft, found.noise_multiplier)
    )


def _reported(plan: Plan) -> float:
    """What a statement on the whole plan would say."""
    return compare(
        [plan.whole], plan.delta, adjacency=plan.adjacency, accountant=plan.accountant
    ).epsilon
