"""Finds, during a backward pass, which groups of parameters have all their gradients.

A rule that clips each group by that group's norm alone can then add the group to the step's sum at
once, and nothing of it is kept. A group is complete when every use of its parameters has arrived:
as many as the forward pass announced, and as many as any pass before had (re-entrant checkpointing
announces nothing, a recurrent cell may be called more often today). A use that arrives after its
group was clipped is refused, and the group waits for the end from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpclip.per_sample.errors import LateGradient


class Completion:
    """Counts the uses of each parameter.

    Args:
        groups: the group of each parameter.
    """

    def __init__(self, groups: Sequence[int]) -> None:
        self._groups = list(groups)
        self._most = [0] * len(self._groups)  # uses of each parameter in any pass so far
        # groups that were once taken to be complete, and were not
        self._surprising: set[int] = set()
        self._count = max(self._groups, default=-1) + 1
        self.begin()

    def begin(self) -> None:
        """Begin a new forward pass."""
        self._announced = [0] * len(self._groups)
        self._seen = [0] * len(self._groups)
        self._missing: list[int] | None = None
        self._clipped: set[int] = set()

    def announce(self, slots: Iterable[int]) -> None:
        """Count a use of these parameters in the forward pass.

        Recomputations in the backward pass announce nothing.

        Args:
            slots: indices of parameters.
        """
        if self._missing is None:
            for slot in slots:
                self._announced[slot] += 1

    def arrived(self, slot: int, name: str) -> int | None:
        """Count a use whose gradient has arrived.

        Args:
            slot: the parameter's index.
            name: of the layer, for the message.

        Returns:
            the group, if that was its last; None otherwise, and for groups that once were taken to
            be complete too early.

        Raises:
            LateGradient: the group was taken to be complete.
        """
        group = self._groups[slot]
        missing = self._expect()
        self._seen[slot] += 1
        if group in self._clipped:
            self._surprising.add(group)
            raise LateGradient(
                f"{name} was used more often than in any pass before, after its group had been "
                "clipped; nothing that was computed with it has been released: begin again, the "
                "model is now known"
            )
        if self._seen[slot] <= self._expected(slot):
            missing[group] -= 1
        return group if missing[group] == 0 and group not in self._surprising else None

    def clipped(self, group: int) -> None:
        """Note that the group has gone into the sum.

        Args:
            group: its number.
        """
        self._clipped.add(group)

    def end(self) -> None:
        """End the pass, and remember how often each parameter was used."""
        self._most = [max(pair) for pair in zip(self._most, self._seen, strict=True)]

    def _expected(self, slot: int) -> int:
        return max(self._most[slot], self._announced[slot])

    def _expect(self) -> list[int]:
        if self._missing is None:
            self._missing = [0] * self._count
            for slot, group in enumerate(self._groups):
                self._missing[group] += self._expected(slot)
        return self._missing
