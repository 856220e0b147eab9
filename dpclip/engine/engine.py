"""One logical step: charge, sample, clip, sum, release, post-process, update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from dpclip import raw_gradients
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan
from dpclip.clipping import ClippingRule, StepRelease
from dpclip.engine.exact_sum import ExactSum
from dpclip.engine.learning_rates import multiplied_learning_rates
from dpclip.engine.movement import Movement
from dpclip.engine.reduction import Reduction, one_process
from dpclip.engine.rounding import norms_from_above, one_loss_a_unit, sum_on_grid
from dpclip.errors import PrivacyError, ReplayError
from dpclip.gradient_sum import GradientSum
from dpclip.guards.update_guard import UpdateGuard
from dpclip.noise.keystream import SecretKey
from dpclip.noise.mechanism import NoiseMechanism
from dpclip.noise.scale import NoiseScale
from dpclip.per_sample import ClipPart, PerSampleView
from dpclip.postprocess import GradientClipper
from dpclip.released import Receipt, Released, Sum
from dpclip.sampling import Sampler


@dataclass
class _Open:
    """A logical step between its charge and its release."""

    receipt: Receipt
    scale: NoiseScale
    sums: dict[str, ExactSum | GradientSum] = field(default_factory=dict)
    units: int = 0  # whose gradients may be in the sums
    sides: dict[str, Tensor] = field(default_factory=dict)
    # a micro-batch whose first groups are in the sums and whose last are not
    half_done: bool = False
    doubts: list[str] = field(default_factory=list)


class Engine:
    """Wires the stages of one step; owns no loop and no files.

    Args:
        plan: the one plan object.
        parameters: the trainable parameters, in order.
        rule: the clipping rule.
        groups: the group of each parameter.
        optimizer: updates exactly these parameters.
        guard: lets it do so with what was released only.
        sampler: draws the logical batches.
        ledger: charges each step before it is drawn, and remembers which sum each noise was given
            to.
        key: the run's secret.
        noise: the mechanism that the plan names.
        postprocess: free transforms of the released gradient.
        reduce: adds up what every process has of a step.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        parameters: Sequence[nn.Parameter],
        rule: ClippingRule,
        groups: Sequence[int],
        optimizer: torch.optim.Optimizer,
        guard: UpdateGuard,
        sampler: Sampler,
        ledger: Ledger,
        key: SecretKey,
        noise: NoiseMechanism,
        postprocess: Sequence[GradientClipper] = (),
        reduce: Reduction = one_process,
    ) -> None:
        self.plan, self.rule, self.ledger = plan, rule, ledger
        self.parameters, self.groups = list(parameters), list(groups)
        self.optimizer, self.guard, self.sampler = optimizer, guard, sampler
        self.key, self.noise, self.reduce = key, noise, reduce
        self.postprocess = list(postprocess)
        if plan.private:
            key.claim()
        self.step = 0
        self.generation = 0
        # that nobody has checked, and that the guarantee therefore names
        self.assumptions: list[str] = []
        self._open: _Open | None = None

    def start_generation(self, reason: str) -> None:
        """Go on from here with fresh randomness; what the rule carries over from steps before is
        dropped.
        """
        self.generation = self.ledger.start_generation(self.step, reason)
        self.rule.forget_unreleased()

    def begin(self) -> np.ndarray:
        """Charge the next step, and only then draw its logical batch.

        Returns:
            indices of the units in the batch, possibly none.

        Raises:
            BudgetExceededError: the step does not fit the budget; nothing was drawn.
        """
        rule = self.rule
        sigma = self.ledger.admitted_noise(self.step, self.generation, rule.noise_preference())
        scale = self.noise.scale(sigma, rule.bounds(), rule.shares(), rule.side_queries())
        receipt = self.ledger.charge(self.step, self.generation, scale.noise_multiplier)
        self._open = _Open(receipt, scale, sides=self._empty_sides())
        return self.sampler.draw(self.step, self.generation)

    def open_micro_batch(self, units: int) -> ClipPart | None:
        """So many units are about to be computed.

        Returns:
            what clips a group as soon as the backward pass has completed it; None for rules that
            need every norm.

        Raises:
            PrivacyError: the micro-batch before broke off after some of its groups had been
                clipped.
        """
        step = self._current()
        self._refuse_half_done(step)
        step.units += units
        for total in step.sums.values():
            total.admit(units)

        def clip_part(part: PerSampleView) -> None:
            step.half_done = True
            self._clip(part, step)

        return clip_part if self.rule.separable else None

    def absorb(self, view: PerSampleView, losses: Tensor | None = None) -> None:
        """Clip one micro-batch and add it to the step's sums.

        Args:
            view: the per-sample gradients.
            losses: each unit's loss, [B]; needed by rules that release a statistic of it.

        Raises:
            PrivacyError: the rule needs the losses, and they are not there or not one a unit.
        """
        step = self._current()
        norms, finite = self._clip(view, step)
        for side in self.rule.side_queries():
            read = norms if side.reads == "norms" else one_loss_a_unit(losses, norms)
            step.sides[side.name] += sum_on_grid(
                side.per_sample(read), finite.all(0), side.sensitivity
            )
        step.doubts, step.half_done = view.doubts(), False

    def _clip(self, view: PerSampleView, step: _Open) -> tuple[Tensor, Tensor]:
        if not step.sums:  # not before the first backward pass has freed its activations
            step.sums = self._empty_sums(step.units)
        gradients = self.rule.transformed(view)
        norms, finite = norms_from_above(gradients.squared_norms(), self.rule.separable)
        for name, factors in self.rule.clip_factors(norms).items():
            gradients.weighted_sum(factors * finite, into=step.sums[name])
        return norms, finite

    def finish(self) -> Released[StepRelease]:
        """Release the step's noisy sum and update the model with it.

        Raises:
            ReplayError: this noise was already given to another gradient.
            PrivacyError: the per-sample gradients are in doubt.
        """
        step = self._current()
        self._refuse_half_done(step)
        self._refuse_doubts(step)
        sums, sides = self.reduce(step.sums or self._empty_sums(), step.sides)
        total = self.rule.combine(sums)
        self._confirm(total, sides, step.receipt)
        released = self.noise.release(
            total, sides, step.scale, step.receipt, self.key, self.plan.expected_batch_size
        ).map(self.rule.inverted)
        self._open = None
        self.rule.observe(released)
        self._update(released)
        self.step += 1
        return released

    def _update(self, released: Released[StepRelease]) -> None:
        if self.postprocess:
            # others are told what was released, not what was made of it
            released = released.map(_copied)
        for clipper in self.postprocess:
            released = clipper.apply(released)
        before = Movement(self.parameters) if self.rule.follows_updates else None
        pairs = zip(self.parameters, released.value.gradient, strict=True)
        # a frozen parameter stays as it is
        values = [value if p.requires_grad else None for p, value in pairs]
        with self._rates(), raw_gradients.released(self.parameters), self.guard.update(values):
            self.optimizer.step()
        if before:
            self.rule.updated(released.map(lambda _: before.lengths()))

    def _rates(self) -> AbstractContextManager[None]:
        multipliers = self.rule.learning_rate_multipliers()
        by = (
            {id(p): m for p, m in zip(self.parameters, multipliers, strict=True)}
            if multipliers
            else {}
        )
        return multiplied_learning_rates(self.optimizer, by)

    @staticmethod
    def _refuse_half_done(step: _Open) -> None:
        if step.half_done:
            raise PrivacyError(
                "a micro-batch broke off after some of its layers had been clipped and added, so "
                "it can neither be completed nor repeated; nothing was released: begin the step "
                "again by resuming the run"
            )

    @staticmethod
    def _refuse_doubts(step: _Open) -> None:
        if step.doubts:
            raise PrivacyError(
                f"{step.doubts[0]} was only seen in batches of one size, so its rows cannot be "
                "told from positions; nothing was released: begin with a micro-batch of one row"
            )

    def _confirm(self, total: Sum, sides: Mapping[str, Tensor], receipt: Receipt) -> None:
        """Note which sum the step's noise is for, or find that it was for another."""
        if not self.plan.private:
            return
        key = self.key.subkey("commitment", receipt.step, receipt.generation)
        if not self.ledger.confirm(receipt, total.digest(sides.values(), key)):
            raise ReplayError(f"step {receipt.step} did not replay bit for bit")

    def _current(self) -> _Open:
        if self._open is None:
            raise RuntimeError("no step is open: call begin() first")
        return self._open

    def _empty_sums(self, units: int = 0) -> dict[str, ExactSum | GradientSum]:
        """One sum for each weighting; exact, or products in float32 that are added up in
        float64.
        """
        found: dict[str, ExactSum | GradientSum] = {}
        limits = self.rule.limits()
        for name, each in limits.items():
            if self.plan.private and self.plan.arithmetic == "exact":
                expected = self.plan.expected_batch_size
                found[name] = ExactSum(
                    self.parameters, self.groups, each, expected, narrow=len(limits) == 1
                )
            else:
                found[name] = GradientSum.zeros(
                    self.parameters, self.groups, accumulate=torch.float64
                )
            found[name].admit(units)
        return found

    def _empty_sides(self) -> dict[str, Tensor]:
        return {
            side.name: torch.zeros(side.size, dtype=torch.float64)
            for side in self.rule.side_queries()
        }


def _copied(step: StepRelease) -> StepRelease:
    return replace(step, gradient=[tensor.clone() for tensor in step.gradient])
