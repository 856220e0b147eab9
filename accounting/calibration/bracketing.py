"""Bracketing the edge of a budget: the least safe value whose figure still meets a target.

All values are handled by their logarithm u, with the sign that makes larger u safer, so that the
figure falls with u.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from accounting.errors import InputError, require

_SHARP = 1e-3  # a result this much less safe, relatively, misses the target
# how far inside the target to aim: computed bounds jump by this much from grid to grid
_AIM = 1.5e-4
_ROUGH = 0.03
_LONGEST_STEP = math.log(64.0)
_PATIENCE = 200  # evaluations


class Search:
    """A bracket around the edge, and how to narrow it.

    Args:
        safer: 1 if larger values are safer, -1 if smaller ones are.
        smallest: the values allowed, both > 0.
        largest: the values allowed, both > 0.
        scale: an increasing function of the figure that is nearly a power of the value; it only
            guides the search.
    """

    def __init__(
        self,
        safer: int,
        smallest: float,
        largest: float,
        scale: Callable[[float], float] = lambda figure: figure,
    ) -> None:
        self._safer, self._scale = safer, scale
        self._smallest, self._largest = smallest, largest
        self._riskiest, self._safest = sorted(
            (safer * math.log(smallest), safer * math.log(largest))
        )
        self._start(1.3)

    def roughly(
        self, figure: Callable[[float], float], target: float, start: float
    ) -> tuple[float, float]:
        """Look for a value whose figure is near the target.

        Args:
            figure: of a value; lower for safer ones.
            target: what the figure shall be, > 0.
            start: the first value tried.

        Returns:
            (a value whose scaled figure is within 3 % of the scaled target, or as near as can be;
            the slope -d log figure / d u there).
        """
        at = self._place(start)
        for _ in range(_PATIENCE):
            excess = self._note(at, figure(self._value(at)), target)
            before, at = at, self._next(0.0)
            if abs(excess) <= _ROUGH or abs(at - before) <= _ROUGH / 4:
                return self._value(before), self._slope
        return self._value(at), self._slope

    def edge(
        self, figure: Callable[[float], float], target: float, start: float, slope: float
    ) -> tuple[float, float]:
        """Find a value that meets the target while one that is 1e-3 less safe does not.

        The least safe value allowed needs no such proof.

        Args:
            figure: of a value; lower for safer ones.
            target: what the figure must not exceed, > 0.
            start: the first value tried.
            slope: -d log figure / d u, roughly.

        Returns:
            (the value, its figure).

        Raises:
            InputError: not even the safest value meets the target.
            AssertionError: the search did not end, so the figure is not monotone.
        """
        self._start(slope)
        value, best = self._value(self._place(start)), (math.nan, math.nan)
        for _ in range(_PATIENCE):
            found, at = figure(value), self._place(value)
            if self._note(at, found, target) > 0.0:
                require(
                    at < self._safest,
                    f"not even {value:g} meets the target; allow more, or fewer steps",
                )
            else:
                best = (value, found)
                if at == self._riskiest:
                    return best
            if self._met is None or self._met[0] - self._next(0.0) > _SHARP / 3:
                value = self._value(self._next(-_AIM))
                continue
            value = min(max(best[0] * (1 - self._safer * _SHARP), self._smallest), self._largest)
            if figure(value) > target:
                return best
        raise AssertionError(
            "the search did not end, so the figure is no monotone function of the value"
        )

    def last_count(
        self, figure: Callable[[int], float], target: float, start: float, slope: float
    ) -> int:
        """The largest count that meets the target while one more does not.

        Counts are safer if smaller, and 1 is taken to meet the target.

        Args:
            figure: of a count.
            target: what the figure must not exceed, > 0.
            start: the first count tried, at least 2.
            slope: -d log figure / d u, roughly, with u = -log count.

        Raises:
            InputError: the largest value allowed meets the target, too.
        """
        self._start(slope)
        low, high, count = 1, 0, max(2, round(start))
        while high != low + 1:
            if self._note(-math.log(count), figure(count), target) > 0.0:
                high = count
            else:
                low = count
                if low >= self._largest:
                    raise InputError(
                        f"more than {low} steps fit into the budget; set the number of steps "
                        "yourself"
                    )
            count = self._next_count(low, high)
        return low

    def _next_count(self, low: int, high: int) -> int:
        guess = round(math.exp(-self._next(0.0)))
        if high == 0:
            return max(low + 1, guess)
        jump = max(1, round(4 * _AIM * guess))
        if high - low <= 4 * jump:
            return (low + high) // 2
        if guess - low <= jump:
            return low + jump
        return high - jump if high - guess <= jump else guess

    def _start(self, slope: float) -> None:
        # (u, log(figure / target)), the safest that misses
        self._missed: tuple[float, float] | None = None
        self._met: tuple[float, float] | None = None
        self._slope, self._stretch = slope, 1.0

    def _place(self, value: float) -> float:
        return min(max(self._safer * math.log(value), self._riskiest), self._safest)

    def _value(self, at: float) -> float:
        if at in (self._riskiest, self._safest):
            return self._smallest if (at == self._riskiest) == (self._safer == 1) else self._largest
        return min(max(math.exp(self._safer * at), self._smallest), self._largest)

    def _note(self, at: float, figure: float, target: float) -> float:
        """Narrow the bracket; log(figure / target), above 0 exactly if the target is missed."""
        again = self._missed is not None or self._met is not None
        scaled = self._scale(figure) / self._scale(target)
        excess = math.log(scaled) if scaled > 0.0 else -math.inf
        if figure > target:
            excess = max(excess, 1e-300)
            self._missed = (at, excess)
        else:
            excess = min(excess, 0.0)
            self._met = (at, excess)
        if self._missed is None or self._met is None:
            self._stretch *= 2.0 if again else 1.0  # still on the same side: the slope misled
            return excess
        fall, run = self._missed[1] - self._met[1], self._met[0] - self._missed[0]
        if fall < math.inf and run > 1e-9:
            self._slope = min(50.0, max(0.02, fall / run))
        return excess

    def _next(self, aim: float) -> float:
        """Where log(figure / target) should be `aim`."""
        if self._missed is not None and self._met is not None:
            (missed, above), (met, below) = self._missed, self._met
            share = (above - aim) / (above - below) if above - below < math.inf else 0.5
            return missed + min(0.98, max(0.02, share)) * (met - missed)
        at, excess = self._missed or self._met or (self._safest, 0.0)
        step = min(abs(excess - aim) / self._slope * self._stretch, _LONGEST_STEP) + 1e-5
        return min(max(at + math.copysign(step, excess - aim), self._riskiest), self._safest)
