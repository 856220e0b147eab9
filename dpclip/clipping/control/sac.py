"""A soft actor-critic for sets: one small network looks at each of any number of groups.

An observation is [K, F], an action [K, A]. The actor is applied to each group; a critic embeds each
group's observation and action, averages over the groups and reads the value off the mean, so that
neither depends on the order of the groups, and a policy learned with few groups runs with many.
With one group this is the usual algorithm. Log-probabilities are averaged over the groups, not
summed, so that the temperature means the same for any K.

References: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018; Zaheer et al.,
"Deep Sets", 2017.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

LOWEST, HIGHEST = -5.0, 2.0  # of the logarithm of the actor's standard deviation


@dataclass(frozen=True)
class SacSettings:
    """Settings of the algorithm; the names are the field's.

    Attributes:
        hidden: width of both hidden layers.
        learning_rate: of actor, critics and temperature.
        gamma: discount a decision; 0.9 looks about 10 decisions ahead.
        tau: how fast the target critics follow, in (0, 1].
        temperature: initial weight of the entropy, positive.
        initial_log_std: of the untrained actor, whose mean is 0.
        largest_gradient: cap on each network's gradient norm.
        anchor: what the square of an action's distance from the mean action that the agent began
            with costs, so that it departs only where the critics say that it pays.
    """

    hidden: int = 64
    learning_rate: float = 3e-4
    gamma: float = 0.9
    tau: float = 0.02
    temperature: float = 0.1
    initial_log_std: float = -1.5
    largest_gradient: float = 10.0
    anchor: float = 0.0


@dataclass(frozen=True)
class Transitions:
    """n decisions and what came of them.

    Attributes:
        observations: [n, K, F].
        actions: as executed, [n, K, A].
        rewards: [n].
        next_observations: [n, K, F].
        done: 1 where the run ended, [n].
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    done: Tensor


@dataclass(frozen=True)
class Losses:
    """What one update minimised.

    Attributes:
        critic: mean squared error of the critics, averaged over the two.
        actor: weighted log-probability less the smaller value, plus the cost of departing.
        temperature: log-temperature times what the entropy exceeds its target by.
    """

    critic: float
    actor: float
    temperature: float


class Actor(nn.Module):
    """A tanh-Gaussian for each group.

    Args:
        features: F.
        actions: A.
        settings: of the algorithm.
    """

    def __init__(self, features: int, actions: int, settings: SacSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.body = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.mean, self.log_std = nn.Linear(width, actions), nn.Linear(width, actions)
        for layer, start in ((self.mean, 0.0), (self.log_std, settings.initial_log_std)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, start)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation before the tanh.

        Args:
            observations: [..., K, F].

        Returns:
            both [..., K, A].
        """
        inner = self.body(observations)
        return self.mean(inner), self.log_std(inner).clamp(LOWEST, HIGHEST).exp()

    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions and compute their log-probabilities.

        Args:
            observations: [..., K, F].
            noise: standard normal, [..., K, A]; zeros give the mean action.

        Returns:
            actions in [-1, 1], [..., K, A], and log-probabilities, summed over A and averaged over
            the groups, [...].
        """
        mean, std = self(observations)
        inner = mean + std * noise
        gaussian = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(inner)^2), without loss
        squash = 2 * (math.log(2) - inner - functional.softplus(-2 * inner))
        return torch.tanh(inner), (gaussian - squash).sum(-1).mean(-1)


class Critic(nn.Module):
    """The value of an observation and an action of all groups.

    Args:
        features: F.
        actions: A.
        settings: of the algorithm.
    """

    def __init__(self, features: int, actions: int, settings: SacSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.each = nn.Sequential(nn.Linear(features + actions, width), nn.ReLU())
        self.together = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Value an observation and an action.

        Args:
            observations: [..., K, F].
            actions: [..., K, A].

        Returns:
            values, [...].
        """
        return self.together(self.each(torch.cat([observations, actions], -1)).mean(-2)).squeeze(-1)


class SoftActorCritic:
    """Twin critics with slow targets, a tanh-Gaussian actor and a learned temperature.

    All its noise comes from a random stream of its own.

    Args:
        features: F.
        actions: A.
        settings: of the algorithm.
        seed: of the networks' first weights and of all noise.
    """

    def __init__(self, features: int, actions: int, settings: SacSettings, seed: int) -> None:
        self.settings, self.actions = settings, actions
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # the run's own randomness is left alone
            torch.manual_seed(seed)
            self.actor = Actor(features, actions, settings)
            self.critics = nn.ModuleList(Critic(features, actions, settings) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.begun = copy.deepcopy(self.actor).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
        rate = settings.learning_rate
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=rate),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=rate),
            "temperature": torch.optim.Adam([self.log_temperature], lr=rate),
        }

    def act(self, observation: Tensor, *, explore: bool = True) -> Tensor:
        """Choose an action.

        Args:
            observation: [K, F].
            explore: whether to draw it; otherwise it is the actor's mean, through the tanh.

        Returns:
            the action, [K, A], in [-1, 1].
        """
        noise = (
            self.noise((len(observation), self.actions))
            if explore
            else torch.zeros(len(observation), self.actions)
        )
        with torch.no_grad():
            return self.actor.act(observation, noise)[0]

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise from the agent's stream: exploration, which protects nothing.

        Args:
            shape: of the result.
        """
        return torch.randn(shape, generator=self.generator)

    def update(
        self, batch: Transitions, noise: Tensor | None = None, next_noise: Tensor | None = None
    ) -> Losses:
        """Take one step of each optimizer (temperature, critics, actor) and let the targets follow.

        Args:
            batch: n transitions.
            noise: [n, K, A] for the actions at the observations; from the agent's own stream unless
                given.
            next_noise: the same at the next observations.

        Returns:
            what each optimizer minimised.
        """
        shape = tuple(batch.actions.shape)
        actions, log_probability = self.actor.act(
            batch.observations, self.noise(shape) if noise is None else noise
        )
        temperature = self.log_temperature.exp().detach()
        # the target entropy is minus the number of actions
        excess = log_probability.detach().mean() - self.actions
        temperature_loss = -self.log_temperature * excess
        self._step("temperature", temperature_loss, [self.log_temperature])

        goal = self._goal(
            batch, temperature, self.noise(shape) if next_noise is None else next_noise
        )
        values = [critic(batch.observations, batch.actions) for critic in self.critics]
        critic_loss = (
            sum((functional.mse_loss(value, goal) for value in values), torch.zeros(())) / 2
        )
        self._step("critics", critic_loss, self.critics.parameters())

        worst = torch.minimum(*(critic(batch.observations, actions) for critic in self.critics))
        actor_loss = (temperature * log_probability - worst).mean() + self._departure(
            batch.observations, actions
        )
        self._step("actor", actor_loss, self.actor.parameters())
        self._follow()
        return Losses(critic_loss.item(), actor_loss.item(), temperature_loss.item())

    def _goal(self, batch: Transitions, temperature: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            actions, log_probability = self.actor.act(batch.next_observations, noise)
            worst = torch.minimum(
                *(target(batch.next_observations, actions) for target in self.targets)
            )
            return batch.rewards + self.settings.gamma * (1 - batch.done) * (
                worst - temperature * log_probability
            )

    def _departure(self, observations: Tensor, actions: Tensor) -> Tensor:
        if self.settings.anchor == 0:
            return torch.zeros(())
        with torch.no_grad():
            begun = torch.tanh(self.begun(observations)[0])
        return self.settings.anchor * (actions - begun).square().sum(-1).mean()

    def _step(
        self, name: str, loss: Tensor, parameters: Iterator[nn.Parameter] | list[nn.Parameter]
    ) -> None:
        optimizer, held = self.optimizers[name], list(parameters)
        optimizer.zero_grad()
        loss.backward(inputs=held)
        nn.utils.clip_grad_norm_(held, self.settings.largest_gradient)
        optimizer.step()

    def _follow(self) -> None:
        with torch.no_grad():
            for slow, fast in zip(
                self.targets.parameters(), self.critics.parameters(), strict=True
            ):
                slow.lerp_(fast, self.settings.tau)

    # --- state ------------------------------------------------------------------------------------

    def policy(self) -> dict[str, Tensor]:
        """Return all networks and the temperature: what a later run can begin with."""
        parts = {"actor": self.actor, "critics": self.critics, "targets": self.targets}
        found = {
            f"{part}.{key}": t for part, net in parts.items() for key, t in net.state_dict().items()
        }
        return {**found, "log_temperature": self.log_temperature.detach()}

    def load_policy(self, state: Mapping[str, Tensor]) -> None:
        """Begin with a `policy`, and measure departures from it.

        Args:
            state: tensors by name, as `policy` returns them.

        Raises:
            RuntimeError: other layers than ours.
            KeyError: there is no temperature.
        """
        for part, net in {
            "actor": self.actor,
            "critics": self.critics,
            "targets": self.targets,
        }.items():
            net.load_state_dict(state_below(state, part))
        self.begun.load_state_dict(self.actor.state_dict())
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])

    def tensor_state(self) -> dict[str, Tensor]:
        """Return everything, so that a resumed run goes on bit for bit."""
        moments = {
            f"optimizer.{name}.{index}.{key}": value
            for name, optimizer in self.optimizers.items()
            for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        begun = {f"begun.{key}": value for key, value in self.begun.state_dict().items()}
        return {**self.policy(), **begun, **moments, "random": self.generator.get_state()}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `tensor_state`.

        Args:
            state: networks, the optimizers' moments and the generator's state.
        """
        self.load_policy(state)
        self.begun.load_state_dict(state_below(state, "begun"))
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in state_below(state, f"optimizer.{name}").items():
                index, _, what = key.partition(".")
                moments.setdefault(int(index), {})[what] = value.clone()
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(state["random"])


def state_below(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Select the entries `name.…`, and drop that prefix.

    Args:
        state: tensors by dotted name.
        name: the prefix, without the dot.
    """
    return {
        key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")
    }
