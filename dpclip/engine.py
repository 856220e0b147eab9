"""One logical step: charge, sample, clip, sum, release, post-process, update."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from dpclip import noise, raw_gradients
from dpclip.clipping import ClippingRule, StepRelease
from dpclip.gradient_sum import GradientSum
from dpclip.ledger import Commitments, Ledger
from dpclip.movement import Movement
from dpclip.per_sample import ClipPart, PerSampleView
from dpclip.plan import Plan
from dpclip.postprocess import GradientClipper
from dpclip.randomness import SecretKey
from dpclip.rates import multiplied_rates
from dpclip.released import Receipt, Released
from dpclip.sampling import Sampler


class ReplayDiverged(RuntimeError):
    """A replayed step arrived at another gradient than the one its noise was drawn for; nothing was released."""


@dataclass
class _Open:
    """A logical step between its charge and its release."""

    receipt: Receipt
    scale: noise.NoiseScale
    sums: dict[str, GradientSum] = field(default_factory=dict)
    sides: dict[str, Tensor] = field(default_factory=dict)
    half_done: bool = False  # a micro-batch whose first groups are in the sums and whose last are not
    doubts: list[str] = field(default_factory=list)


class Engine:
    """Wires the stages of one step; owns no loop and no files.

    Args:
        plan: the one plan object.
        parameters: the trainable parameters, in order.
        rule: the clipping rule.
        groups: the group of each parameter.
        optimizer: updates exactly these parameters.
        sampler: draws the logical batches.
        ledger: charges each step before it is drawn.
        commitments: remembers which gradient each noise value was given to.
        key: the run's secret.
        postprocess: free transforms of the released gradient.
    """

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[nn.Parameter],
        rule: ClippingRule,
        groups: Sequence[int],
        optimizer: torch.optim.Optimizer,
        sampler: Sampler,
        ledger: Ledger,
        commitments: Commitments,
        key: SecretKey,
        postprocess: Sequence[GradientClipper] = (),
    ) -> None:
        self.plan, self.rule, self.ledger = plan, rule, ledger
        self.parameters, self.groups = list(parameters), list(groups)
        self.optimizer, self.sampler = optimizer, sampler
        self.commitments, self.key, self.postprocess = commitments, key, list(postprocess)
        self.step = 0
        self.generation = 0
        self._open: _Open | None = None

    def start_generation(self, reason: str) -> None:
        """Go on from here with fresh randomness; what the rule carries over from steps before is dropped."""
        self.generation = self.ledger.start_generation(self.step, reason)
        self.rule.fresh_start()

    def begin(self) -> np.ndarray:
        """Charge the next step, and only then draw its logical batch.

        Returns:
            indices of the units in the batch, possibly none.

        Raises:
            BudgetExhausted: the step does not fit the budget; nothing was drawn.
        """
        rule = self.rule
        sigma = self.ledger.admissible(self.step, self.generation, rule.noise_wish())
        scale = noise.scale_noise(sigma, rule.bounds(), rule.shares(), rule.side_queries())
        receipt = self.ledger.charge(self.step, self.generation, scale.noise_multiplier)
        self._open = _Open(receipt, scale, sides=self._empty_sides())
        return self.sampler.draw(self.step, self.generation)

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
            read = norms if side.reads == "norms" else _one_a_unit(losses, norms)
            statistics = side.per_sample(read) * finite.all(0)
            step.sides[side.name] += statistics.sum(1).to("cpu", torch.float64)
        step.doubts, step.half_done = view.doubts(), False

    def part_clipper(self) -> ClipPart | None:
        """What clips a group as soon as the backward pass has completed it; None for rules that need every norm.

        Raises:
            PrivacyError: the micro-batch before broke off after some of its groups had been clipped.
        """
        step = self._current()
        self._refuse_half_done(step)

        def clip_part(part: PerSampleView) -> None:
            step.half_done = True
            self._clip(part, step)

        return clip_part if self.rule.separable else None

    def _clip(self, view: PerSampleView, step: _Open) -> tuple[Tensor, Tensor]:
        step.sums = step.sums or self._empty_sums()  # not before the first backward pass has freed its activations
        gradients = self.rule.reshaped(view)
        norms, finite = _norms(gradients.squared_norms(), self.rule.separable)
        for name, factors in self.rule.weightings(norms).items():
            gradients.weighted_sum(factors * finite, into=step.sums[name])
        return norms, finite

    def finish(self) -> Released[StepRelease]:
        """Release the step's noisy sum and update the model with it.

        Raises:
            ReplayDiverged: this noise was already given to another gradient.
            PrivacyError: the per-sample gradients are in doubt.
        """
        step = self._current()
        self._refuse_half_done(step)
        if step.doubts:
            raise noise.PrivacyError(
                f"{step.doubts[0]} was only seen in batches of one size, so its rows cannot be told from positions; "
                "nothing was released: begin with a micro-batch of one row"
            )
        total = self.rule.combine(step.sums or self._empty_sums())
        if self.plan.private and not self.commitments.confirm(step.receipt, self._fingerprint(total, step)):
            raise ReplayDiverged(f"step {step.receipt.step} did not replay bit for bit")
        released = noise.release(total, step.sides, step.scale, step.receipt, self.key, self.plan.expected_batch_size)
        released = released.map(self.rule.restored)
        self._open = None
        self.rule.observe(released)
        self._update(released)
        self.step += 1
        return released

    def _update(self, released: Released[StepRelease]) -> None:
        if self.postprocess:
            released = released.map(_copied)  # others are told what was released, not what was made of it
        for clipper in self.postprocess:
            released = clipper.apply(released)
        for parameter, value in zip(self.parameters, released.value.gradient, strict=True):
            parameter.grad = value.to(parameter.dtype)
        before = Movement(self.parameters) if self.rule.follows_updates else None
        with self._rates(), raw_gradients.released(self.parameters):
            self.optimizer.step()
        if before:
            self.rule.updated(released.map(lambda _: before.lengths()))
        for parameter in self.parameters:
            parameter.grad = None

    def _rates(self) -> AbstractContextManager[None]:
        multipliers = self.rule.rate_multipliers()
        by = {id(p): m for p, m in zip(self.parameters, multipliers, strict=True)} if multipliers else {}
        return multiplied_rates(self.optimizer, by)

    @staticmethod
    def _refuse_half_done(step: _Open) -> None:
        if step.half_done:
            raise noise.PrivacyError(
                "a micro-batch broke off after some of its layers had been clipped and added, so it can neither be "
                "completed nor repeated; nothing was released: begin the step again by resuming the run"
            )

    def _fingerprint(self, total: GradientSum, step: _Open) -> str:
        key = self.key.subkey("commitment", step.receipt.step, step.receipt.generation)
        return total.digest(step.sides.values(), key)

    def _current(self) -> _Open:
        if self._open is None:
            raise RuntimeError("no step is open: call begin() first")
        return self._open

    def _empty_sums(self) -> dict[str, GradientSum]:
        names = self.rule.weightings(torch.ones(len(self.rule.bounds()), 0))
        return {name: GradientSum.zeros(self.parameters, self.groups) for name in names}

    def _empty_sides(self) -> dict[str, Tensor]:
        return {side.name: torch.zeros(side.size, dtype=torch.float64) for side in self.rule.side_queries()}


def _copied(step: StepRelease) -> StepRelease:
    return replace(step, gradient=[tensor.clone() for tensor in step.gradient])


def _one_a_unit(losses: Tensor | None, norms: Tensor) -> Tensor:
    if losses is None or losses.shape != norms.shape[1:]:
        raise noise.PrivacyError(
            "the clipping rule releases a statistic of each unit's loss and was not given one loss a unit: compute the "
            "loss with private.mean(losses), or choose a rule or mode that does not need it (rl:mode=A)"
        )
    return losses.to(norms).unsqueeze(0)


def _norms(squared: Tensor, separable: bool = False) -> tuple[Tensor, Tensor]:
    """Norms [K, B] rounded up, and which samples' gradients are finite [K, B].

    The inflation covers the rounding of sums of squares, so that a clipped sample never exceeds its bound; a gradient
    that is not finite gets norm 1 here and factor 0 in every sum (law 6). Where groups are clipped one by one, it is
    the group that is dropped: those before it are in the sum when it is met.
    """
    finite = squared.isfinite()
    if not separable:
        finite = finite.all(0).expand_as(squared)
    slack = 2.0**-48 if squared.dtype == torch.float64 else 2.0**-19
    norms = torch.where(finite, squared, torch.ones_like(squared)).sqrt() * (1 + slack)
    return norms, finite
