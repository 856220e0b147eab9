"""The learning controller: observes, remembers, learns, acts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dpclip.clipping.control.context import NOISE, Context
from dpclip.clipping.control.controller import CONTROLLERS, Controller, ControllerSettings
from dpclip.clipping.control.features import features, width
from dpclip.clipping.control.reward import Reward
from dpclip.clipping.control.sac import SacSettings, SoftActorCritic, Transitions, state_below
from dpclip.clipping.control.summary import Summary
from dpclip.clipping.rule import ParameterKind
from dpclip.errors import InputError
from dpclip.released import Released

MOST_TRANSITIONS, LARGEST_BATCH, FIRST_BATCH, UPDATES = 2000, 32, 8, 4
# that an update looks at: of more, this many at random, which bounds what learning costs
MOST_GROUPS = 24
CAREFUL = SacSettings(temperature=0.002, initial_log_std=math.log(0.05), anchor=3.0)
"""For runs that count: departures cost, and few of them are made to explore."""
_POLICIES = Path(__file__).parent / "policies"
PUBLIC = {36: _POLICIES / "public-short.safetensors", 240: _POLICIES / "public-long.safetensors"}
"""By the steps of the longest runs they were taught on (experiments/rl_control).

The first is better in short runs; in one of 120 steps it more than doubled the perplexity.
"""
_PARTS = ("observations", "actions", "rewards", "next_observations", "done")


@CONTROLLERS.register
class SacController(Controller):
    """A soft actor-critic that departs from the analytic controller where that pays.

    It begins with departures of mean 0 and, from 8 transitions on, makes 4 updates a decision on up
    to 32 of the last 2,000. What it remembers are the actions that were executed.

    Args:
        seed: of its networks and its exploration.
        policy: a file of networks to begin with (`SoftActorCritic.policy`), made from public or
            synthetic runs.
        reward: "loss", "signal" or "both", see `Reward`.
        settings: of the algorithm; `CAREFUL` unless given.

    Reference: Khadangi et al., "Efficient Differentially Private Fine-Tuning of LLMs via
    Reinforcement Learning", 2025 (the idea; that agent reads un-noised statistics, this one
    released values only).
    """

    name: ClassVar[str] = "sac"

    def __init__(
        self,
        seed: int = 0,
        policy: Path | None = None,
        reward: str = "both",
        settings: SacSettings | None = None,
    ) -> None:
        self._seed, self._settings, self._kind = seed, settings or CAREFUL, reward
        self._policy: Path | None = None
        self.start(1, NOISE)
        self._policy = policy  # read as soon as it is known how many columns an action has

    @classmethod
    def made(cls, settings: ControllerSettings) -> Controller:
        """One with the rule's seed, policy and reward."""
        return cls(settings.seed, settings.policy, settings.reward)

    def begin_with(self, policy: Path) -> None:
        """Keep the file; `start` reads it.

        Args:
            policy: file of networks.
        """
        self._policy = policy

    def start(self, groups: int, actions: int) -> None:
        """Forget everything and, where there is a policy, begin with its networks.

        Args:
            groups: unused; the networks take any number of groups.
            actions: A, columns of an action.

        Raises:
            InputError: the policy cannot be read, or has other layers.
        """
        self._actions = actions
        self._built: SoftActorCritic | None = None
        if self._policy is not None:
            _begin_with(self._agent, self._policy)
        self._reward = Reward(self._kind)
        self._memory: dict[str, list[Tensor]] = {part: [] for part in _PARTS}
        # the observation of the last decision, and what was done about it
        self._before: Tensor | None = None
        self._done: Tensor | None = None
        self._change, self._last, self._left = 0.0, 0.0, 1.0

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        """Reward the last decision, learn from it, and make the next.

        Args:
            seen: the steps since the last decision, at least one.
            context: what is public anyway.

        Returns:
            the action that is wanted, [K, A], in [-1, 1].
        """
        gained = self._reward.of(seen.value, self._change) - self._overspent(context)
        observation = features(seen.value, context, self._reward.course)
        if self._before is not None and self._done is not None:
            self._remember(self._before, self._done, gained, observation)
            self._learn()
        self._before, self._last = observation, gained
        return self._agent.act(observation)

    def _overspent(self, context: Context) -> float:
        """Return what the decision took of the budget beyond its even share.

        0 unless the noise is the agent's to choose.
        """
        spent, self._left = self._left - context.budget_left, context.budget_left
        return (
            spent - context.interval / context.steps
            if self._actions > NOISE and context.steps
            else 0.0
        )

    @property
    def _agent(self) -> SoftActorCritic:
        """The agent, built when it is first needed."""
        if self._built is None:
            self._built = SoftActorCritic(
                width(self._actions), self._actions, self._settings, self._seed
            )
        return self._built

    def executed(self, action: Tensor) -> None:
        """Remember the action that was taken, and how much it changed on average.

        Args:
            action: the action now in force, [K, A].
        """
        self._change = 0.0 if self._done is None else float((action - self._done).abs().mean())
        self._done = action.clone()

    def _remember(self, before: Tensor, action: Tensor, gained: float, after: Tensor) -> None:
        row = (before, action, torch.tensor(gained), after, torch.tensor(0.0))
        for part, value in zip(_PARTS, row, strict=True):
            self._memory[part] = [*self._memory[part], value][-MOST_TRANSITIONS:]

    def _learn(self) -> None:
        size = len(self._memory["rewards"])
        if size < FIRST_BATCH:
            return
        whole = {part: torch.stack(values) for part, values in self._memory.items()}
        for _ in range(UPDATES):
            picked, groups = (
                self._some(size, LARGEST_BATCH),
                self._some(len(whole["actions"][0]), MOST_GROUPS),
            )
            batch = {part: values[picked] for part, values in whole.items()}
            batch |= {
                part: batch[part][:, groups]
                for part in ("observations", "actions", "next_observations")
            }
            self._agent.update(Transitions(**batch))

    def _some(self, count: int, most: int) -> Tensor:
        """Draw at most `most` of the numbers below `count`, at random."""
        return torch.randperm(count, generator=self._agent.generator)[:most]

    # --- state ------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        return {"reward": self._last, "transitions": float(len(self._memory["rewards"]))}

    def public_state(self) -> dict[str, Any]:
        return {
            "reward": self._reward.public_state(),
            "change": self._change,
            "last": self._last,
            "left": self._left,
        }

    def load_public_state(self, state: Mapping[str, Any]) -> None:
        """Restore the reward's account and the last decision's outcome.

        Args:
            state: what `public_state` returned.
        """
        self._reward.load_public_state(state["reward"])
        self._change, self._last, self._left = state["change"], state["last"], state["left"]

    def tensor_state(self) -> dict[str, Tensor]:
        kept = {"before": self._before, "done": self._done}
        memory = {
            f"memory.{part}": torch.stack(values) for part, values in self._memory.items() if values
        }
        networks = self._built.tensor_state() if self._built else {}
        agent = {f"agent.{name}": value for name, value in networks.items()}
        return {
            **{name: value for name, value in kept.items() if value is not None},
            **memory,
            **agent,
        }

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the last decision, the memory and, where they had been built, the networks.

        Args:
            state: what `tensor_state` returned.
        """
        self._before, self._done = state.get("before"), state.get("done")
        self._memory = {part: list(state.get(f"memory.{part}", ())) for part in _PARTS}
        if networks := state_below(state, "agent"):
            self._agent.load_tensor_state(networks)

    def policy(self) -> dict[str, Tensor]:
        """Return the networks, to begin a later run with."""
        return self._agent.policy()

    def describe(self) -> dict[str, Any]:
        start = {"policy": self._policy.name} if self._policy else {}
        return {"controller": self.name, "reward": self._kind, "agent_seed": self._seed, **start}


def policy_file(policy: str, mode: str) -> Path | None:
    """Find the user's own file of networks to begin with.

    Args:
        policy: a file's path, "public", "auto" or "none".
        mode: "A", "B" or "C".

    Returns:
        the path; None for the words, and for an empty string.

    Raises:
        InputError: "public" in mode C, whose noise the networks that ship know nothing of.
    """
    if policy == "public" and mode == "C":
        raise InputError(
            "policy=public was taught without a say in the noise: choose mode A or B, or "
            "policy=none"
        )
    return None if policy in ("", "none", "auto", "public") else Path(policy)


def public_policy(
    policy: str, mode: str, steps: int, kinds: Sequence[ParameterKind]
) -> Path | None:
    """Choose the networks that ship which a run begins with.

    With "public" always one, with "auto" where that did well: in runs of whole models with
    embeddings that are not longer than it was taught.

    Args:
        policy: the rule's setting.
        mode: "A", "B" or "C".
        steps: planned steps of the run; 0 if not known.
        kinds: of the trainable parameters.

    Returns:
        a file of the package, or None.
    """
    fitting = next((file for longest, file in PUBLIC.items() if 0 < steps <= longest), None)
    if policy == "public":
        return fitting or PUBLIC[max(PUBLIC)]
    whole = "embedding" in kinds and "adapter" not in kinds
    return fitting if policy == "auto" and mode != "C" and whole else None


def _begin_with(agent: SoftActorCritic, policy: Path) -> None:
    try:
        agent.load_policy(load_file(policy))
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"policy {policy} cannot be used: {reason}; give a file kept from a run of this mode"
        ) from error
