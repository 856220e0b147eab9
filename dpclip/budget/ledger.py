"""Charges each step's event, durably, before its sample is drawn (law 1)."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import accounting.errors
from accounting import Comparison, Event, Journal, compare, event_from_json, make_accountant
from accounting.comparison import filtered
from accounting.statement import profile_section
from dpclip.budget.plan import Plan, check_arithmetic_recorded
from dpclip.errors import BudgetExceededError, InputError
from dpclip.released import Receipt
from dpclip.sampling import Charge


class Ledger:
    """Charges steps against a plan; on disk as a hash-chained journal, or in memory for scripts and
    notebooks.

    A charge is identified by (step, generation): asking again for one that is on record returns its
    receipt without a second charge, which is how a bit-identical replay is paid for once. The same
    file says which sum each noise was added to, so that a charge without a release is a step whose
    noise was never drawn.
    """

    def __init__(self, plan: Plan, journal: Journal | None) -> None:
        self.plan = plan
        self._journal = journal
        self._kept: list[dict[str, Any]] = []  # what a journal would have, while there is none
        self._charged: dict[tuple[int, int], Receipt] = {}
        self._charges: Counter[Charge] = Counter()
        self._released: dict[tuple[int, int], str] = {}
        self._filter = plan.scheme.filter(plan)
        for record in journal.records if journal else ():
            self._replay(record)

    @classmethod
    def create(cls, path: Path | None, plan: Plan, settings: str | None = None) -> Ledger:
        """Start a new ledger; with no path it lives in memory only.

        Args:
            path: of the journal.
            plan: what is charged against.
            settings: keyed digest of the run's settings, which binds them to its history.
        """
        return cls(plan, Journal.create(path, _header(plan, settings)) if path else None)

    def move_to(self, path: Path) -> None:
        """Keep a ledger that lived in memory at a path from now on, with all that it has.

        Raises:
            InputError: it is kept at a path already.
        """
        if self._journal is not None:
            raise InputError(
                "the ledger is kept in a file already (ledger_path), and a run has one ledger: "
                "leave ledger_path out, and the run's folder keeps it"
            )
        journal = Journal.create(path, _header(self.plan, None))
        try:
            for body in self._kept:
                journal.append(body)
        except BaseException:
            journal.close()
            raise
        self._journal, self._kept = journal, []

    def _write(self, body: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append(body)
        else:
            self._kept.append(body)

    @staticmethod
    def header(path: Path) -> dict[str, Any]:
        """What a run began with, from a ledger whose chain of hashes is whole.

        Raises:
            InputError: it was begun by a version whose sums and noise were computed otherwise.
            JournalCorruptError: a line, the header included, was edited.
        """
        found = Journal.read(path).header
        check_arithmetic_recorded(found.get("plan", {}))
        return found

    @classmethod
    def open(cls, path: Path, plan: Plan) -> Ledger:
        """Continue the ledger of a run.

        Raises:
            InputError: the ledger was written for another plan, or by an earlier version.
        """
        journal = Journal.open(path)
        if journal.header.get("digest") != plan.digest():
            journal.close()
            old = journal.header.get("plan", {})
            check_arithmetic_recorded(old)
            changed = [k for k, v in plan.to_json().items() if old.get(k) != v]
            raise InputError(
                f"the ledger {path} was written for another plan (changed: "
                f"{', '.join(changed) or 'unknown'}): resume with the original settings, or start "
                "a new run in a new folder"
            )
        return cls(plan, journal)

    def _replay(self, record: dict[str, Any]) -> None:
        if record.get("kind") == "step":
            self._book(record["step"], record["generation"], event_from_json(record["event"]))
        elif record.get("kind") == "release":
            self._released[record["step"], record["generation"]] = record["commitment"]

    def _book(self, step: int, generation: int, event: Event) -> Receipt:
        sigma = float(getattr(event, "noise_multiplier", 0.0))
        self._charges[Charge(event, step % 2, generation)] += 1
        if self._filter is not None:
            self._filter.charge(event)
            receipt = Receipt(
                step, generation, sigma, len(self._charged), None, self._filter.remaining()
            )
        else:
            done = self._planned_steps()
            left = 0.0 if done is None else max(0.0, 1 - done / self.plan.steps)
            receipt = Receipt(step, generation, sigma, len(self._charged), done, left)
        self._charged[step, generation] = receipt
        return receipt

    def charge(self, step: int, generation: int, noise_multiplier: float) -> Receipt:
        """Write the step's event and return its receipt; only then may its sample be drawn.

        Raises:
            BudgetExceededError: one more step would exceed (epsilon, delta); nothing is written.
        """
        known = self._charged.get((step, generation))
        if known is not None:
            return known
        event = self.plan.event(noise_multiplier)
        self._check_budget(Charge(event, step % 2, generation))
        self._write(
            {
                "kind": "step",
                "step": step,
                "generation": generation,
                "event": event.to_json(),
            }
        )
        return self._book(step, generation, event)

    def confirm(self, receipt: Receipt, digest: str) -> bool:
        """Record which sum a step's noise is about to be added to; it is on disk when this returns.

        A replay that arrives at another sum must not meet the same noise: the difference of the two
        releases would be that of the two private sums.

        Args:
            receipt: of the step's charge.
            digest: Poly1305 tag of the sum under a key that serves this (step, generation) alone,
                which tells nothing to who lacks the run's key; so it may stand in the ledger, which
                leaves the private folder.

        Returns:
            False if another sum is on record for the same noise.
        """
        slot = (receipt.step, receipt.generation)
        known = self._released.get(slot)
        if known is not None:
            return known == digest
        self._write(
            {
                "kind": "release",
                "step": receipt.step,
                "generation": receipt.generation,
                "commitment": digest,
            }
        )
        self._released[slot] = digest
        return True

    def admitted_noise(self, step: int, generation: int, wish: float) -> float:
        """The noise of the step: what the plan makes of the rule's wish, or more if a filter admits
        no less.
        """
        known = self._charged.get((step, generation))
        if known is not None:
            return known.noise_multiplier
        wanted = self.plan.scheme.preferred_noise(self.plan, wish)
        if self._filter is None:
            return wanted
        try:
            return self._filter.smallest_noise(1, self.plan.sample_rate, floor=wanted)
        except accounting.errors.BudgetExceededError:
            return wanted  # which `charge` refuses

    def _check_budget(self, charge: Charge) -> None:
        if not self.plan.private:
            return
        if self._filter is not None:
            if self._filter.can_afford(charge.event):
                return
            raise BudgetExceededError(
                f"step {self.charges + 1} does not fit into what the privacy filter has left"
            )
        after = self.plan.spent(self._charges + Counter([charge]))
        planned, most = self.plan.whole
        if set(after) == {planned} and after[planned] <= most and self._plan_fits:
            return
        accountant = make_accountant(self.plan.accountant, self.plan.adjacency)
        for event, count in after.items():
            accountant.charge(event, count)
        spent = accountant.epsilon(self.plan.delta).upper
        if spent > self.plan.target_epsilon:
            raise BudgetExceededError(
                f"step {self.charges + 1} would spend epsilon {spent:.4g} of "
                f"{self.plan.target_epsilon:g} at delta {self.plan.delta:g}"
            )

    def _planned_steps(self) -> int | None:
        planned, most = self.plan.whole
        spent = self.plan.spent(self._charges)
        if set(spent) != {planned} or spent[planned] > most:
            return None
        return (
            self.plan.scheme.after(self.plan, spent[planned])
            if self.plan.private
            else spent[planned]
        )

    @cached_property
    def _plan_fits(self) -> bool:
        """Whether all planned steps together stay within the budget; asked of the accountant once a
        run.
        """
        accountant = make_accountant(self.plan.accountant, self.plan.adjacency)
        return accountant.quote(*self.plan.whole, self.plan.delta).upper <= self.plan.target_epsilon

    def start_generation(self, from_step: int, reason: str) -> int:
        """Open a new generation of randomness for steps that cannot be replayed bit for bit."""
        generation = 1 + max((g for _, g in self._charged), default=-1)
        self._write(
            {
                "kind": "fresh-randomness",
                "from_step": from_step,
                "generation": generation,
                "reason": reason,
            }
        )
        return generation

    def compare(self) -> Comparison:
        """All accountants on what has been charged so far; a filter promises its budget, and they
        only compare.
        """
        if self._filter is not None:
            return filtered(self._filter, self.plan.delta)
        return compare(
            self.events,
            self.plan.delta,
            adjacency=self.plan.adjacency,
            accountant=self.plan.accountant,
        )

    def profile(self) -> list[dict[str, Any]]:
        """epsilon at several deltas; at the preset one only, where a filter makes the promise."""
        if self._filter is not None:
            return [{"delta": self.plan.delta, "epsilon": self.plan.target_epsilon}]
        return profile_section(self.events, self.plan.adjacency, self.plan.accountant)

    @property
    def events(self) -> list[tuple[Event, int]]:
        """What the charged steps cost together: events with their counts."""
        return list(self.plan.spent(self._charges).items())

    @property
    def charges(self) -> int:
        """Number of steps charged, replays with fresh randomness included."""
        return len(self._charged)

    def charges_after(self, step: int) -> int:
        """Charged steps from `step` on: those that a run resumed there would take again."""
        return len({s for s, _ in self._charged if s >= step})

    @property
    def head(self) -> str:
        """Hash of the last line; empty for a ledger in memory."""
        return self._journal.head if self._journal else ""

    def contains(self, head: str) -> bool:
        """Whether a head seen earlier is part of this history: a shortened ledger is found out."""
        return self._journal is None or self._journal.contains(head)

    def close(self) -> None:
        """Release the journal's lock."""
        if self._journal is not None:
            self._journal.close()


def _header(plan: Plan, settings: str | None) -> dict[str, Any]:
    bound = {"settings": settings} if settings else {}
    return {"plan": plan.to_json(), "digest": plan.digest(), **bound}
