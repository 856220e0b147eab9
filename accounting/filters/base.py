"""What all privacy filters share: the charge that may be refused, the reserve, and the state on
disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from accounting.accountant import make_accountant
from accounting.errors import BudgetExceededError, InputError, require
from accounting.events import Event, event_from_json, require_adjacency, require_count
from accounting.events.base import is_real
from accounting.filters.odometer import RunningCost, require_accountable, require_event
from accounting.interval import EpsilonGuarantee, Interval

FILTER_SCHEMA = 1
Reserve = tuple[Event, int]


@dataclass(frozen=True)
class PlugInFigure:
    """What an ordinary accountant says of the realised schedule, which is no statement about an
    adaptive run.

    Attributes:
        figure: epsilon at `delta`, >= 0 or inf.
        delta: in [0, 1).
        accountant: who said it.
        note: why it is no guarantee.
        kind: always "NOT_A_GUARANTEE".
    """

    figure: float
    delta: float
    accountant: str
    note: str
    kind: Literal["NOT_A_GUARANTEE"] = "NOT_A_GUARANTEE"


class Filter(ABC):
    """What all filters share: costs on one or several scales, a preset budget on each, and one
    rule.

    A release is admitted if there is one scale on which everything charged so far, the release
    itself and what is reserved stay within the budget. Costs are rounded up, budgets down. A
    release is one charged event, whatever it is composed of; all its parameters are fixed before it
    runs, from what was released before and fresh coins.

    Args:
        adjacency: the neighbouring relation.
        max_releases: how many releases there can be at most, >= 1.
        reserve: (event, releases) keeps enough for a run of so many releases in all to be completed
            with this event.
        budgets: one for each scale, > 0.
        prices: what one release of an event costs on each scale.

    Raises:
        InputError: a value out of range, or a reserve that overflows the budget from the start.
    """

    name: ClassVar[str]

    def __init__(
        self,
        adjacency: str,
        max_releases: int,
        reserve: Reserve | None,
        budgets: tuple[float, ...],
        prices: Callable[[Event], tuple[float, ...]],
    ) -> None:
        require_adjacency(adjacency)
        require_count(
            max_releases, "max_releases", 1, "fix in advance how many releases there can be at most"
        )
        self._adjacency = adjacency
        self._max_releases = int(max_releases)
        self._budgets = budgets
        self._prices = prices
        self._costs = RunningCost(prices, len(budgets))
        self._reserve = self._checked_reserve(reserve)

    @property
    def adjacency(self) -> str:
        """The neighbouring relation."""
        return self._adjacency

    @property
    def max_releases(self) -> int:
        """The preset largest number of releases."""
        return self._max_releases

    @property
    def releases(self) -> int:
        """Number of releases charged so far."""
        return self._costs.releases

    @property
    def events(self) -> list[tuple[Event, int]]:
        """Everything charged so far, in order; equal neighbours are one entry."""
        return list(self._costs.schedule)

    @property
    @abstractmethod
    def contract(self) -> dict[str, Any]:
        """Everything that was fixed at the start, as JSON."""

    @classmethod
    @abstractmethod
    def _from_contract(cls, contract: dict[str, Any]) -> Self: ...

    @abstractmethod
    def diagnostics(self) -> dict[str, Any]:
        """Budgets and what was spent of them, as JSON; for display, not for promises."""

    def can_afford(self, event: Event, count: int = 1) -> bool:
        """Whether `charge` would accept these releases.

        Raises:
            InputError: where `charge` would raise it, too.
        """
        return self._refusal(event, count) is None

    def charge(self, event: Event, count: int = 1) -> int:
        """Book releases of an event, to be called before they run.

        Args:
            count: number of releases, >= 1.

        Returns:
            how many releases are booked by now.

        Raises:
            BudgetExceededError: they do not fit, and none is booked; something cheaper may still
                fit.
            InputError: this filter cannot account for the event, or no such count.
        """
        refusal = self._refusal(event, count)
        if refusal is not None:
            raise BudgetExceededError(refusal)
        self._costs.charge(event, int(count))
        return self._costs.releases

    def remaining(self) -> float:
        """The unspent fraction of the budget on the scale where most is left, in [0, 1]."""
        parts = zip(self._costs.spent, self._budgets, strict=True)
        return max(max(0.0, 1.0 - spent / budget) for spent, budget in parts)

    def plug_in(self, delta: float) -> PlugInFigure:
        """NOT_A_GUARANTEE: epsilon as if the realised schedule had been fixed in advance, to
        compare with.

        Args:
            delta: in [0, 1).
        """
        accountant = make_accountant("prv", self._adjacency)
        for event, count in self._costs.schedule:
            accountant.charge(event, count)
        note = (
            "NOT_A_GUARANTEE: composes the realised schedule as if it had been fixed in advance, "
            "which it was not"
        )
        return PlugInFigure(accountant.epsilon(delta).upper, float(delta), accountant.name, note)

    def state(self) -> dict[str, Any]:
        """Everything needed to continue after a restart, as JSON."""
        body = {
            "schema": FILTER_SCHEMA,
            "filter": self.name,
            "contract": self.contract,
            "schedule": [[event.to_json(), count] for event, count in self._costs.schedule],
            "releases": self._costs.releases,
            "spent": [plain(value) for value in self._costs.spent],
        }
        return {**body, "digest": _digest(body)}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], contract: Mapping[str, Any] | None = None
    ) -> Self:
        """The filter as it was; what was spent is added up again and must agree.

        Args:
            state: what `state` gave.
            contract: that of the filter the run was configured with; any difference is refused.

        Raises:
            InputError: the state was edited, is of another schema or filter, or has overspent its
                budget.
        """
        _require_intact(state, cls.name, contract)
        try:
            restored = cls._from_contract(deepcopy(state["contract"]))
            for record, count in state["schedule"]:
                event = event_from_json(record)
                require_event(event, count)
                restored._costs.charge(event, count)
            recorded = [float(value) for value in state["spent"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"filter state cannot be restored ({error}); use the dictionary state() gave"
            ) from error
        agree = len(recorded) == len(restored._costs.spent) and all(
            math.isclose(a, b, rel_tol=1e-9)
            for a, b in zip(recorded, restored._costs.spent, strict=True)
        )
        require(
            agree
            and state["releases"] == restored.releases
            and restored.contract == state["contract"],
            f"filter state spent={state['spent']!r} does not follow from its schedule; use the "
            "one state() gave",
        )
        require(
            restored.releases <= restored.max_releases and restored._within(restored._costs.spent),
            "filter state has overspent its budget, which no run of this filter can; nothing can "
            "be promised of it",
        )
        return restored

    def _within(self, spent: tuple[float, ...]) -> bool:
        return any(value <= budget for value, budget in zip(spent, self._budgets, strict=True))

    def _refusal(self, event: Event, count: int) -> str | None:
        self._require_chargeable(event, count)
        left = self._max_releases - self._costs.releases
        if count > left:
            return (
                f"{left} of max_releases={self._max_releases} are left and {count} were asked for; "
                "stop the run here"
            )
        promised = self._promised(self._costs.releases + int(count))
        spent = self._costs.after((event, int(count)), *promised)
        if self._within(spent):
            return None
        share = min(value / budget for value, budget in zip(spent, self._budgets, strict=True))
        kept = " and what is reserved" if promised else ""
        shown = f"{count} x {event!r}"[:120]
        return (
            f"{shown}{kept} would bring spending to {share:.6g} times the budget; take more noise, "
            "or stop here"
        )

    def _require_chargeable(self, event: Event, count: int) -> None:
        require_event(event, count)
        require_accountable(event, self._adjacency)

    def _promised(self, done: int) -> tuple[Reserve, ...]:
        """What must still fit once so many releases are done."""
        if self._reserve is None or self._reserve[1] <= done:
            return ()
        return ((self._reserve[0], self._reserve[1] - done),)

    def _checked_reserve(self, reserve: Reserve | None) -> Reserve | None:
        if reserve is None:
            return None
        require(
            isinstance(reserve, tuple) and len(reserve) == 2,
            f"reserve={reserve!r} is not a pair; give (event, releases)",
        )
        event, releases = reserve
        self._require_chargeable(event, releases)
        require(
            releases <= self._max_releases,
            f"a reserve of {releases} releases exceeds max_releases={self._max_releases}; give at "
            "most that many",
        )
        require(
            self._within(self._costs.after((event, int(releases)))),
            f"a reserve of {releases} x {event!r} overflows the budget from the start; give it "
            "more noise",
        )
        return event, int(releases)

    def _reserve_json(self) -> dict[str, Any] | None:
        if self._reserve is None:
            return None
        return {"event": self._reserve[0].to_json(), "releases": self._reserve[1]}


def reserve_from_json(record: dict[str, Any] | None) -> Reserve | None:
    """Read the reserve of a contract back.

    Args:
        record: "event" and "releases", or None for no reserve.

    Raises:
        KeyError: one of them is missing.
        InputError: the event cannot be read.
    """
    return None if record is None else (event_from_json(record["event"]), record["releases"])


def budget_guarantee(
    epsilon: float, delta: float, adjacency: str, name: str, note: str
) -> EpsilonGuarantee:
    """The preset budget, as a promise.

    Args:
        epsilon: >= 0.
        delta: in (0, 1).
        name: of the filter.
        note: how the budget was enforced, in words.
    """
    return EpsilonGuarantee(
        epsilon, delta, "filter budget", adjacency, name, Interval(name, None, None, epsilon, note)
    )


def require_epsilon(epsilon: float) -> None:
    """Refuse what is no budget.

    Raises:
        InputError: it is no finite number above 0.
    """
    require(
        is_real(epsilon) and 0.0 < epsilon < math.inf,
        f"epsilon={epsilon!r} is no budget; give a finite number above 0",
    )


def plain(value: float) -> float | str:
    """A number as JSON knows it: an infinite one becomes the string "inf"."""
    return "inf" if math.isinf(value) else value


def _require_intact(
    state: Mapping[str, Any], name: str, contract: Mapping[str, Any] | None
) -> None:
    require(
        isinstance(state, Mapping),
        f"filter state {str(state)[:60]!r} is no record; use what state() gave",
    )
    body: dict[str, Any] = {key: value for key, value in state.items() if key != "digest"}
    require(
        body.get("schema") == FILTER_SCHEMA,
        f"filter state has schema {body.get('schema')!r}, this version reads {FILTER_SCHEMA}; use "
        "the version that wrote it",
    )
    require(
        body.get("filter") == name,
        f"filter state is of a {body.get('filter')!r}, not of a {name!r}; use the class that "
        "wrote it",
    )
    try:
        digest = _digest(body)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"filter state is not plain JSON ({error}); use the dictionary state() gave"
        ) from error
    require(
        digest == state.get("digest"),
        "filter state was edited after it was written; use the one state() gave",
    )
    written = body.get("contract")
    if not isinstance(written, dict):
        raise InputError("filter state has no contract; use the dictionary state() gave")
    if contract is not None:
        differing = sorted(
            key for key in {*contract, *written} if contract.get(key) != written.get(key)
        )
        require(
            not differing,
            f"the contract was changed in {', '.join(differing)}, but a budget is fixed at the "
            "start; restore it",
        )


def _digest(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
