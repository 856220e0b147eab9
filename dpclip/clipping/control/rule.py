"""Per-group thresholds and noise allocation, set by a controller that sees released values only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold, one_of
from dpclip.clipping.control import make_controller
from dpclip.clipping.control.context import ALLOCATION, NOISE, RATE, THRESHOLD, Context
from dpclip.clipping.control.controller import ControllerSettings
from dpclip.clipping.control.parameter_groups import GROUPINGS, Layout, resolve_grouping
from dpclip.clipping.control.released_loss import LossWindow
from dpclip.clipping.control.sac import state_below
from dpclip.clipping.control.sac_controller import policy_file, public_policy
from dpclip.clipping.control.summary import Summariser, Summary
from dpclip.clipping.per_group import PerGroup
from dpclip.clipping.quantile import Quantile
from dpclip.clipping.rule import RULES, ParameterKind, RunShape
from dpclip.errors import InputError
from dpclip.released import Released, SideQuery, StepRelease

MODES = ("A", "B", "C")
_MOST_CURVES = 24  # of groups, evenly chosen
REWARDS = ("loss", "signal", "both")


@RULES.register
@dataclass
class ControlledClipping(PerGroup):
    """factor_ik = min(1, C_k / ||g_ik||), with C_k and each group's noise set by a controller.

    The analytic settings are the released quantile for C (of each group for C_k) and the
    minimum-variance allocation. Every `interval` steps the controller, by default a soft
    actor-critic, chooses by how much to depart from them: C_k = analytic C_k exp(reach u_k),
    share_k in proportion to analytic share_k exp(reach v_k), and the optimizer's learning rate for
    the group is multiplied by exp(2 reach w_k); u, v and w in [-1, 1]. sigma_eff stays as planned
    whatever it chooses, so the guarantee is that of any other rule. The optimizer gets the released
    gradient in units of the thresholds at the start.

    Args:
        mode: what the controller sees. "A": released gradients only, thresholds start at C /
            sqrt(K) and have no quantile to follow. "B": also the noisy share of units below each
            analytic threshold and the noisy mean of the clipped losses, released with the gradient
            and paid for in sigma_eff. "C": as B, and the controller chooses each step's noise, too,
            from 0.95 to 1.25 times the planned noise and within what a privacy filter admits; the
            guarantee is then the filter's budget.
        controller: "sac", or a control: "quantile", "constant", "random", "schedule".
        groups: what is clipped together: "layer" (both halves of a LoRA adapter together), "block",
            "tensor", "model", or "auto": layers with equal analytic thresholds where most of what
            is trained are adapters, else the model.
        rate_groups: what the controller sees apart and gives a learning rate of its own, likewise;
            at least as fine as `groups`.
        interval: steps from one decision to the next.
        warmup: part of the run before the first decision; 0 lets the controller decide once after
            the first release, too.
        max_grad_norm: joint threshold at the start.
        reach: how far a decision may depart, in log; log 2 by default.
        step_limit: largest change of a log threshold or log share from one decision to the next; a
            log rate may change by 2 reach.
        quantile: of the analytic thresholds, as in `Quantile`.
        rate: of the analytic thresholds, as in `Quantile`.
        first_rate: of the analytic thresholds, as in `Quantile`.
        count_share: parts of each step's 1/sigma^2 that the counts and the loss take;
            together they make the gradient's noise larger by (1 - count_share - loss_share)^(-1/2),
            0.76 % by default.
        loss_share: likewise.
        loss_width: w; losses are clipped to w (at least 2.5 in the first two steps) on either side
            of a running mean of the released ones, so that the number of units in a batch adds no
            noise.
        reward: what the agent is rewarded for, "loss", "signal" or "both".
        policy: networks that the agent begins with: a file; "public", those that ship with the
            package (modes A and B; taught on language models under AdamW, one for runs of at most
            36 steps and one for longer ones); "none": it then departs by nothing on average; or
            "auto": "public" where that did well, for whole models with embeddings and at most 240
            steps, in modes A and B, else "none".
        agent_seed: of the agent's own random numbers, which protect nothing.
        allocation: the analytic one, see `noise_shares`.

    Guarantee: one sample moves group k's sum by at most C_k, the counts by at most sqrt(K)/2 in all
    and the loss by at most w.

    Edge cases: a loss that is not finite counts as the running mean, a gradient that is not finite
    not at all.

    Reference: Khadangi et al., "Efficient Differentially Private Fine-Tuning of LLMs via
    Reinforcement Learning", 2025 (a controller for thresholds); analytic parts and observation are
    derived here, see docs/explanation/control.md.
    """

    max_grad_norm: float = 0.1
    mode: str = "B"
    controller: str = "sac"
    groups: str = "auto"
    rate_groups: str = "layer"
    interval: int = 4
    warmup: float = 0.0
    reach: float = math.log(2)
    step_limit: float = 0.25
    quantile: float = 0.1
    rate: float = 0.2
    first_rate: float = 2.0
    count_share: float = 0.005
    loss_share: float = 0.01
    loss_width: float = 1.0
    reward: str = "both"
    policy: str = "auto"
    agent_seed: int = 0
    name: ClassVar[str] = "rl"
    follows_updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES)
        one_of("groups", self.groups, (*GROUPINGS, "auto"))
        one_of("reward", self.reward, REWARDS)
        one_of("rate_groups", self.rate_groups, tuple(GROUPINGS))
        self.group_of = GROUPINGS[resolve_grouping(self.groups)]
        super().__post_init__()
        self._check()
        settings = ControllerSettings(
            self.agent_seed, policy_file(self.policy, self.mode), self.reward
        )
        self.agent = make_controller(self.controller, settings)
        self.sampling = "filtered" if self.mode == "C" else "poisson"
        self._columns = 4 if self.mode == "C" else 3
        self._analytic = Quantile(
            self.max_grad_norm, quantile=self.quantile, rate=self.rate, first_rate=self.first_rate,
            group_of=self.group_of,
        )  # fmt: skip
        self._steps, self._planned = 0, 0
        self._kinds: list[ParameterKind] = []
        self._begin([0], [0], [1])

    def _check(self) -> None:
        if self.interval < 1:
            raise InputError(f"interval = {self.interval}: at least one step between decisions")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup = {self.warmup}: a part of the run, from 0 to below 1")
        for setting in ("reach", "step_limit", "loss_width"):
            check_threshold(setting, getattr(self, setting))
        if not (
            self.count_share > 0 and self.loss_share > 0 and self.count_share + self.loss_share < 1
        ):
            raise InputError(
                f"count_share = {self.count_share}, loss_share = {self.loss_share}: positive parts "
                "of the step's budget, below 1 together"
            )

    def set_run(self, shape: RunShape) -> None:
        """Keep the planned steps.

        Args:
            shape: of the run; public.
        """
        self._planned = shape.steps

    def set_parameter_kinds(self, kinds: Sequence[ParameterKind]) -> None:
        """Keep what the parameters are, and begin with networks that ship where `policy` says so.

        Args:
            kinds: one for each trainable parameter, in the order of `partition`.
        """
        self._kinds = list(kinds)
        if (file := public_policy(self.policy, self.mode, self._planned, kinds)) is not None:
            self.agent.begin_with(file)

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the clipping groups and, at least as finely, those that the controller sees.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements.

        Returns:
            the clipping group k of each parameter, 0 to K - 1.
        """
        groups = resolve_grouping(self.groups, names)
        self.group_of = self._analytic.group_of = GROUPINGS[groups]
        owners = super().partition(names, sizes)
        self._analytic.partition(names, sizes)
        finer = min(groups, self.rate_groups, key=list(GROUPINGS).index)
        seen = [GROUPINGS[finer](name) for name in names]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(seen))}
        self._begin(owners, [numbers[group] for group in seen], sizes)
        return owners

    def _begin(self, owners: Sequence[int], seen: Sequence[int], sizes: Sequence[int]) -> None:
        self._layout = Layout(tuple(owners), tuple(seen), tuple(sizes), tuple(self._kinds))
        parents = self._layout.parents
        self._summariser = Summariser(seen, sizes, parents)
        self._history: tuple[Summary, ...] = ()
        self._latest: dict[str, float] = {}
        self._moved: tuple[float, ...] = ()
        self._window = LossWindow(self.loss_width)
        self._action = torch.zeros(len(parents), self._columns)
        self.agent.start(len(parents), self._columns)
        self._first_bounds = self.bounds()

    # --- what is clipped and how the noise is shared ----------------------------------------------

    def bounds(self) -> list[float]:
        analytic = self._analytic.bounds()
        if self.groups == "auto" and len(analytic) > 1:
            analytic = [statistics.geometric_mean(analytic)] * len(analytic)
        return [bound * by for bound, by in zip(analytic, self._departures(THRESHOLD), strict=True)]

    def _departures(self, column: int) -> list[float]:
        """Return the factors exp(reach x) by clipping group, [K], for a column x of the action.

        Where the controller sees parts of a group apart, x is their mean.
        """
        return (self.reach * self._layout.means(self._action[:, column])).exp().tolist()

    def shares(self) -> list[float]:
        weights = [
            share * by
            for share, by in zip(super().shares(), self._departures(ALLOCATION), strict=True)
        ]
        return [weight / math.fsum(weights) for weight in weights]

    def noise_preference(self) -> float:
        return float(self._action[:, NOISE].mean()) if self.mode == "C" else 0.0

    def learning_rate_multipliers(self) -> list[float]:
        each = self._group_rates()
        return [each[group] for group in self._layout.seen]

    def _group_rates(self) -> list[float]:
        return (2 * self.reach * self._action[:, RATE].double()).exp().tolist()

    def inverted(self, step: StepRelease) -> StepRelease:
        """Express the release in units of the thresholds at the start: post-processing.

        What optimizers average over steps has one scale, wherever the thresholds go.

        Args:
            step: the release, on the scale of the mean; its gradient is changed in place.

        Returns:
            the same with `stds` and `coordinate_stds` scaled alike.
        """
        scales = [first / now for first, now in zip(self._first_bounds, self.bounds(), strict=True)]
        each = [scales[owner] for owner in self._layout.owners]
        torch._foreach_mul_(step.gradient, each)
        stds = tuple(std * scale for std, scale in zip(step.stds, scales, strict=True))
        coordinates = tuple(
            std * scale for std, scale in zip(step.coordinate_stds, each, strict=True)
        )
        return replace(step, stds=stds, coordinate_stds=coordinates)

    def side_queries(self) -> Sequence[SideQuery]:
        if self.mode == "A":
            return ()
        return [self._analytic.counts(self.count_share), self._window.query(self.loss_share)]

    # --- what is learned, from released values only -----------------------------------------------

    def observe(self, released: Released[StepRelease]) -> None:
        """Follow the quantiles, and have the controller decide when it is time.

        Args:
            released: the step after `inverted`.
        """
        seen = released.map(self._with_history)
        if self.mode != "A" and self.agent.tracks:
            self._analytic.observe(released)
        self._history, self._steps = seen.value, self._steps + 1
        self._latest = seen.value[-1].shown()
        if (loss := seen.value[-1].loss) is not None:
            self._window.observe(loss)
        at_first = self._steps == 1 and self.warmup == 0
        if at_first or (
            self._steps > self.warmup * self._planned and self._steps % self.interval == 0
        ):
            self._decide(seen, self._noise_level(released.value.coordinate_stds))

    def updated(self, moves: Released[Sequence[float]]) -> None:
        """Keep how far the update moved each of the controller's groups.

        Args:
            moves: one length for each trainable parameter.
        """
        self._moved = self._layout.moved(moves.value)

    def _with_history(self, step: StepRelease) -> tuple[Summary, ...]:
        latest = self._summariser.summarise(step, loss_offset=self._window.centre)
        return (*self._history, latest)[-self.interval :]

    def _noise_level(self, stds: Sequence[float]) -> float:
        """Return the norm that noise has, over the joint threshold at the start.

        `stds` is its standard deviation in each parameter's coordinates.
        """
        return self._layout.norm(stds) / math.sqrt(math.fsum(c**2 for c in self._first_bounds))

    def _decide(self, seen: Released[tuple[Summary, ...]], noise_level: float) -> None:
        in_force, left = self._action.clone(), seen.receipt.budget_left
        context = Context(
            step=self._steps,
            steps=self._planned,
            budget_left=left,
            sizes=self._layout.seen_sizes(),
            executed=in_force,
            interval=self.interval,
            noise_level=noise_level,
            kinds=self._layout.seen_kinds(),
            moved=self._moved,
        )
        wanted = self.agent.act(seen, context).clamp(-1, 1)
        limit = torch.full((self._columns,), self.step_limit / self.reach)
        limit[RATE] = 1.0
        self._action = in_force + (wanted - in_force).clamp(-limit, limit)
        self.agent.executed(self._action)
        self._history = ()

    # --- state ------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        bounds, shares, rates = self.bounds(), self.shares(), self._group_rates()
        found = {
            "threshold": math.sqrt(sum(c**2 for c in bounds)),
            "departure": float(self._action.abs().mean()),
            "rate_multiplier": math.exp(math.fsum(map(math.log, rates)) / len(rates)),
        }
        for group in range(0, len(bounds), math.ceil(len(bounds) / _MOST_CURVES)):
            found |= {
                f"group_threshold_{group}": bounds[group],
                f"noise_share_{group}": shares[group],
            }
        for group in range(0, len(rates), math.ceil(len(rates) / _MOST_CURVES)):
            found[f"group_rate_{group}"] = rates[group]
        return {**found, **self.agent.metrics(), **self._latest}

    def public_state(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "action": self._action.tolist(),
            "analytic": self._analytic.public_state(),
            "history": [asdict(summary) for summary in self._history],
            "latest": self._latest,
            "agent": self.agent.public_state(),
            "moved": list(self._moved),
            "window": [self._window.seen, self._window.centre],
        }

    def load_public_state(self, state: Mapping[str, Any]) -> None:
        self._steps, self._latest = state["steps"], dict(state["latest"])
        self._window.seen, self._window.centre = state["window"]
        self._moved = tuple(state["moved"])
        self._action = torch.tensor(state["action"])
        self._analytic.load_public_state(state["analytic"])
        self._history = tuple(Summary.from_json(summary) for summary in state["history"])
        self.agent.load_public_state(state["agent"])

    def tensor_state(self) -> dict[str, Tensor]:
        parts = {"summary": self._summariser.tensor_state(), "agent": self.agent.tensor_state()}
        return {
            f"{part}.{name}": value
            for part, state in parts.items()
            for name, value in state.items()
        }

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        # inner products depend on it, in the last bit
        aligned = {name: value.clone() for name, value in state.items()}
        self._summariser.load_tensor_state(state_below(aligned, "summary"))
        self.agent.load_tensor_state(state_below(aligned, "agent"))

    def describe(self) -> dict[str, Any]:
        observed = (
            [] if self.mode == "A" else ["share below each analytic threshold", "mean clipped loss"]
        )
        price = 0.0 if self.mode == "A" else (1 - self.count_share - self.loss_share) ** -0.5 - 1
        own = {
            "mode": self.mode, "interval": self.interval, "reach": self.reach, "observed": observed,
            "more_noise_for_observing": round(price, 6), **self.agent.describe(),
        }  # fmt: skip
        return {**super().describe(), **own}
