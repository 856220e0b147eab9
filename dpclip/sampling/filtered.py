"""Poisson batches whose noise is chosen while training, within what a Rényi filter admits."""

from __future__ import annotations

import math
from typing import ClassVar

import accounting.errors
from accounting.filters.renyi import RenyiFilter
from dpclip.errors import InputError
from dpclip.sampling.poisson import Poisson
from dpclip.sampling.schedule import Schedule
from dpclip.sampling.scheme import SCHEMES

NOISE_RANGE = (0.95, 1.25)
"""The least and the most noise that a rule may choose, over the planned noise.

A filter works at an order that suits the least of it, so every per cent below 1 costs steps.
"""
_MOST_NOISE = 1e6


@SCHEMES.register
class Filtered(Poisson):
    """Poisson batches, with each step's noise chosen from what was released.

    It is chosen within `NOISE_RANGE` of the planned noise. Composing the noise that happened to be
    chosen would prove nothing. A Rényi filter, fixed with the plan, admits each step before its
    batch is drawn, and always keeps enough for the rest of the run at the most noise. What is
    promised is the budget, whatever was spent of it.
    """

    name: ClassVar[str] = "filtered"
    title: ClassVar[str] = (
        "Poisson-subsampled Gaussian, its noise chosen step by step under a privacy filter"
    )
    kind: ClassVar[str] = "filter budget"

    def filter(self, schedule: Schedule) -> RenyiFilter | None:
        """Make the filter with the budget of the plan and a reserve for the rest of the run.

        Args:
            schedule: the run's numbers; its `noise_multiplier` is the planned one.

        Returns:
            a fresh filter; None for training without privacy.
        """
        if not schedule.private:
            return None
        least, most = (by * schedule.noise_multiplier for by in NOISE_RANGE)
        # steps that have to be repeated with fresh noise are charged again
        releases = 2 * schedule.steps
        return RenyiFilter.planned(
            schedule.target_epsilon,
            schedule.delta,
            schedule.adjacency,
            self.sample_rate(schedule),
            least,
            releases,
            reserve=(self.event(schedule, most), schedule.steps),
        )

    def certificate(self, accountant: str) -> str:
        return "preset budget of a Rényi filter"

    def preferred_noise(self, schedule: Schedule, wish: float) -> float:
        """Interpolate in log between the least, the planned and the most noise.

        Args:
            schedule: the run's numbers.
            wish: -1 the least and 1 the most of `NOISE_RANGE`; clamped to [-1, 1].

        Returns:
            sigma_eff of the step.
        """
        most = NOISE_RANGE[1] if wish > 0 else 1 / NOISE_RANGE[0]
        return schedule.noise_multiplier * most ** max(-1.0, min(1.0, wish))

    def noise_multiplier(self, schedule: Schedule, fixed: float) -> float:
        """Search for the least noise that the filter's orders afford in every step.

        Args:
            schedule: the run's numbers.
            fixed: sigma_eff that an accountant would ask for.

        Returns:
            sigma_eff, to 1 part in 10,000; a few per cent more than `fixed`.

        Raises:
            InputError: no order of the filter has any budget.
        """
        low, high = fixed, 2 * fixed
        while not self._affords(schedule, high):
            low, high = high, 2 * high
            if high > _MOST_NOISE:
                raise InputError(
                    f"epsilon = {schedule.target_epsilon:g} leaves a privacy filter no budget at "
                    "any of its orders: plan with a larger epsilon, or choose a rule or mode with "
                    "fixed noise (rl:mode=B)"
                )
        while high > low * (1 + 1e-4):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._affords(schedule, middle) else (middle, high)
        return high

    def _affords(self, schedule: Schedule, noise: float) -> bool:
        least = NOISE_RANGE[0] * noise
        try:
            book = RenyiFilter.planned(
                schedule.target_epsilon,
                schedule.delta,
                schedule.adjacency,
                self.sample_rate(schedule),
                least,
                schedule.steps,
            )
        except accounting.errors.InputError:
            return False
        return book.can_afford(self.event(schedule, noise), schedule.steps)
