"""The soft actor-critic: against stable-baselines3 on the same batch and weights, on a task, and
its symmetries.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpclip.clipping.control import SacSettings, SoftActorCritic, Transitions
from dpclip.clipping.control.features import width
from dpclip.clipping.control.sac_controller import SacController

FEATURES, ACTIONS, BATCH = 5, 2, 32


def transitions(generator: torch.Generator, groups: int = 1, size: int = BATCH) -> Transitions:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Transitions(
        draw(size, groups, FEATURES),
        draw(size, groups, ACTIONS).tanh(),
        draw(size),
        draw(size, groups, FEATURES),
        (draw(size) > 1).float(),
    )


def awake(seed: int = 0, **settings: Any) -> SoftActorCritic:
    """An agent whose last layers are not zero."""
    agent = SoftActorCritic(FEATURES, ACTIONS, SacSettings(**settings), seed)
    with torch.no_grad():
        for layer in (agent.actor.mean, agent.actor.log_std):
            layer.weight.normal_(0, 0.1, generator=agent.generator)
    return agent


class _Replayed(torch.distributions.Normal):
    """A normal distribution whose samples are given."""

    noises: list[Tensor]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * type(self).noises.pop(0)


def oracle(agent: SoftActorCritic, monkeypatch: pytest.MonkeyPatch) -> Any:
    """stable-baselines3's agent with our weights."""
    gymnasium = pytest.importorskip("gymnasium")
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common import distributions
    from stable_baselines3.common.logger import configure

    class Spaces(gymnasium.Env):  # type: ignore[name-defined,misc]
        observation_space = gymnasium.spaces.Box(-9, 9, (FEATURES,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    settings = agent.settings
    model = sb3.SAC(
        "MlpPolicy",
        Spaces(),
        buffer_size=100,
        gamma=settings.gamma,
        tau=settings.tau,
        device="cpu",
        ent_coef=f"auto_{settings.temperature}",
        learning_rate=settings.learning_rate,
        policy_kwargs={"net_arch": [settings.hidden] * 2},
    )
    model.set_logger(configure(None, []))
    _copy(agent.actor.body, model.actor.latent_pi)
    _copy(agent.actor.mean, model.actor.mu)
    _copy(agent.actor.log_std, model.actor.log_std)
    for name, critics in {"critic": agent.critics, "critic_target": agent.targets}.items():
        for index, critic in enumerate(critics):
            _copy(
                nn.Sequential(*critic.each, *critic.together),
                getattr(model, name).q_networks[index],
            )
    monkeypatch.setattr(distributions, "Normal", _Replayed)
    return model


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(
        dict(zip(target.state_dict(), source.state_dict().values(), strict=True))
    )


def test_losses_and_weights_are_those_of_stable_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = awake()
    model = oracle(agent, monkeypatch)
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        batch = transitions(generator)
        noises = [torch.randn(BATCH, 1, ACTIONS, generator=generator) for _ in range(2)]
        _Replayed.noises = [noise[:, 0] for noise in noises]
        samples = ReplayBufferSamples(
            batch.observations[:, 0],
            batch.actions[:, 0],
            batch.next_observations[:, 0],
            batch.done.unsqueeze(1),
            batch.rewards.unsqueeze(1),
        )
        monkeypatch.setattr(
            model.replay_buffer, "sample", lambda *_, samples=samples, **__: samples
        )
        model.train(gradient_steps=1, batch_size=BATCH)
        ours, theirs = agent.update(batch, *noises), model.logger.name_to_value
        assert ours.critic == pytest.approx(theirs["train/critic_loss"], abs=1e-5)
        assert ours.actor == pytest.approx(theirs["train/actor_loss"], abs=1e-5)
        assert ours.temperature == pytest.approx(theirs["train/ent_coef_loss"], abs=1e-5)
    for a, b in zip(agent.targets.parameters(), model.critic_target.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for a, b in zip(agent.actor.parameters(), model.actor.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class Pendulum:
    """Swing up a pendulum with too little torque to lift it at once; 100 steps an episode."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self.reset()

    def reset(self) -> Tensor:
        start = torch.rand(2, generator=self._generator)
        self.angle, self.speed = float(2 * math.pi * start[0]), float(2 * start[1] - 1)
        return self.observation

    @property
    def observation(self) -> Tensor:
        return torch.tensor([[math.cos(self.angle), math.sin(self.angle), self.speed / 8]])

    def step(self, action: Tensor) -> tuple[Tensor, float]:
        torque = 2 * float(action[0, 0])
        away = (self.angle + math.pi) % (2 * math.pi) - math.pi
        cost = away**2 + 0.1 * self.speed**2 + 0.001 * torque**2
        self.speed = max(
            -8.0, min(8.0, self.speed + 0.05 * (15 * math.sin(self.angle) + 3 * torque))
        )
        self.angle += 0.05 * self.speed
        return self.observation, -cost / 10


def returns(agent: SoftActorCritic, episodes: int) -> float:
    """Mean return of the policy's mean action."""
    env = Pendulum(torch.Generator().manual_seed(99))
    total = 0.0
    for _ in range(episodes):
        seen = env.reset()
        for _ in range(100):
            seen, reward = env.step(agent.act(seen, explore=False))
            total += reward
    return total / episodes


@pytest.mark.long
def test_it_swings_up_a_pendulum() -> None:
    settings = SacSettings(learning_rate=1e-3, gamma=0.98, tau=0.01, initial_log_std=-0.5)
    agent = SoftActorCritic(3, 1, settings, seed=0)
    env = Pendulum(torch.Generator().manual_seed(0))
    before = returns(agent, 10)
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    for episode in range(60):
        seen = env.reset()
        for _ in range(100):
            action = (
                agent.act(seen)
                if episode > 4
                else 2 * torch.rand(1, 1, generator=agent.generator) - 1
            )
            after, reward = env.step(action)
            rows.append((seen, action, torch.tensor(reward), after, torch.tensor(0.0)))
            seen = after
            if len(rows) >= 300:
                picked = torch.randint(len(rows), (64,), generator=agent.generator).tolist()
                agent.update(
                    Transitions(
                        *(
                            torch.stack(part)
                            for part in zip(*(rows[i] for i in picked), strict=True)
                        )
                    )
                )
    assert before < -50
    assert returns(agent, 10) > -25


def test_the_order_of_the_groups_does_not_matter() -> None:
    agent, generator = awake(), torch.Generator().manual_seed(2)
    batch, noise = (
        transitions(generator, groups=6),
        torch.randn(BATCH, 6, ACTIONS, generator=generator),
    )
    order = torch.randperm(6, generator=generator)
    with torch.no_grad():
        actions, probability = agent.actor.act(batch.observations, noise)
        shuffled, same = agent.actor.act(batch.observations[:, order], noise[:, order])
        assert torch.allclose(actions[:, order], shuffled, atol=1e-6)
        assert torch.allclose(probability, same, atol=1e-5)
        values = agent.critics[0](batch.observations, batch.actions)
        assert torch.allclose(
            values,
            agent.critics[0](batch.observations[:, order], batch.actions[:, order]),
            atol=1e-6,
        )


def test_log_probabilities_integrate_to_one() -> None:
    agent = awake(initial_log_std=-0.3)
    observation = torch.zeros(1, FEATURES)
    noise = torch.randn(200_000, 1, ACTIONS, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        actions, probability = agent.actor.act(observation.expand(len(noise), 1, FEATURES), noise)
    inside = (actions.abs() < 0.5).all(-1).squeeze(-1)
    area = (1.0 / probability.exp())[inside].sum() / len(noise)  # E[1/p; A] is the volume of A
    assert float(area) == pytest.approx(1.0, rel=0.02)


def test_an_untrained_agent_departs_by_nothing_on_average() -> None:
    agent = SoftActorCritic(FEATURES, ACTIONS, SacSettings(), 0)
    assert bool((agent.act(torch.randn(4, FEATURES), explore=False) == 0).all())


def test_the_runs_own_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    agent = SoftActorCritic(FEATURES, ACTIONS, SacSettings(), 1)
    agent.act(torch.zeros(2, FEATURES))
    agent.update(transitions(torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(3), expected)


def test_a_restored_agent_goes_on_bit_for_bit() -> None:
    first, generator = awake(), torch.Generator().manual_seed(4)
    for _ in range(3):
        first.update(transitions(generator, groups=3))
    second = SoftActorCritic(FEATURES, ACTIONS, SacSettings(), 77)
    second.load_tensor_state({name: value.clone() for name, value in first.tensor_state().items()})
    for _ in range(3):
        batch = transitions(generator, groups=3)
        assert first.update(batch) == second.update(batch)
    for name, value in first.tensor_state().items():
        assert torch.equal(second.tensor_state()[name], value), name


def test_a_policy_runs_with_another_number_of_groups() -> None:
    first = awake()
    first.update(transitions(torch.Generator().manual_seed(6), groups=3))
    second = SoftActorCritic(FEATURES, ACTIONS, SacSettings(), 8)
    second.load_policy(first.policy())
    wide = torch.zeros(24, FEATURES)
    assert torch.equal(first.act(wide, explore=False), second.act(wide, explore=False))


def test_an_anchor_holds_the_actor_to_where_it_began() -> None:
    def ends(anchor: float) -> float:
        agent, generator = (
            awake(anchor=anchor, learning_rate=1e-2, temperature=1e-3),
            torch.Generator().manual_seed(9),
        )
        seen = torch.randn(8, 3, FEATURES, generator=generator)
        began = agent.actor(seen)[0].detach()
        for _ in range(60):
            batch = transitions(generator, groups=3)
            # more is better
            agent.update(replace(batch, rewards=batch.actions.mean((1, 2)), done=torch.ones(BATCH)))
        return float((agent.actor(seen)[0].detach() - began).mean())

    free, held = ends(0.0), ends(3.0)
    assert free > 0.2
    assert abs(held) < free / 3


def test_an_anchor_is_where_the_agent_began_after_a_restart_too() -> None:
    first, generator = awake(anchor=1.0), torch.Generator().manual_seed(4)
    second = SoftActorCritic(FEATURES, ACTIONS, SacSettings(anchor=1.0), 77)
    first.load_policy(awake(3).policy())
    first.update(transitions(generator))
    second.load_tensor_state({name: value.clone() for name, value in first.tensor_state().items()})
    batch = transitions(generator)
    assert first.update(batch) == second.update(batch)


def test_of_many_groups_an_update_looks_at_some() -> None:
    agent, looked_at = SacController(seed=0), []
    agent.start(60, 3)
    update = agent._agent.update
    agent._agent.update = lambda batch: looked_at.append(batch) or update(batch)  # type: ignore[method-assign,func-returns-value]
    draw = torch.Generator().manual_seed(0)
    for _ in range(9):
        observations = torch.randn(2, 60, width(3), generator=draw)
        agent._remember(observations[0], torch.rand(60, 3, generator=draw), 0.5, observations[1])
        agent._learn()
    assert [batch.actions.shape[1] for batch in looked_at] == [24] * 8
    rows = looked_at[0].observations[0, :, 0], looked_at[1].observations[0, :, 0]
    assert not torch.equal(*rows)
