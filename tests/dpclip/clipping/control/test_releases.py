"""A controller sees released values and public numbers only, and the noise pays for them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import dpclip
from dpclip.clipping import ClippingRule, ControlledClipping, RunShape, StepRelease, make_rule
from dpclip.clipping.control import (
    CONTROLLERS,
    Context,
    Summary,
    coordinates,
)
from dpclip.clipping.control.baselines import Constant
from dpclip.clipping.control.summary import Summariser
from dpclip.engine.learning_rates import multiplied_learning_rates
from dpclip.engine.movement import Movement
from dpclip.engine.setup import parameter_kinds
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import PrivacyError
from dpclip.noise.scale import scale_noise
from dpclip.per_sample import FactoredView
from dpclip.released import Released
from dpclip.testing import rules as clipper_laws
from tests.support.controlled import Recorder, model, steps_of, training

# --- only released values steer -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["rl:interval=1", "rl:interval=2,mode=A", "rl:interval=1,controller=random"]
)
def test_actions_follow_from_what_was_released_alone(text: str) -> None:
    """The same releases and garbage for data, gradients and batches: the same decisions, bit for
    bit.
    """
    data = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
    rule = make_rule(text)
    assert isinstance(rule, ControlledClipping)
    private, net = training(rule, data)
    recorder = Recorder(private)
    for _ in steps_of(private, net):
        pass
    private.close()
    assert len(recorder.seen) == 24
    assert len({tuple(bounds) for _, bounds, _, _ in recorder.seen}) > 10, "nothing was decided"

    other, twin = make_rule(text), model()
    other.set_run(RunShape(24, 16))
    other.set_parameter_kinds(parameter_kinds(twin))
    other.partition(
        [name for name, _ in twin.named_parameters()], [p.numel() for p in twin.parameters()]
    )
    garbage = torch.Generator().manual_seed(9)
    for released, bounds, shares, multipliers in recorder.seen:
        for _ in range(int(torch.randint(4, (1,), generator=garbage))):
            norms = torch.rand(len(bounds), 7, generator=garbage) * 1e6
            other.clip_factors(norms)
            for side in other.side_queries():
                side.per_sample(norms if side.reads == "norms" else norms[:1])
        other.observe(released)
        assert other.bounds() == bounds
        assert other.shares() == shares
        assert other.learning_rate_multipliers() == multipliers
        update(twin, other, released)


def update(net: nn.Module, rule: ClippingRule, released: Released[StepRelease]) -> None:
    """What the engine does with a release, on a model that has never seen data."""
    parameters = list(net.parameters())
    optimizer, before = torch.optim.SGD(parameters, lr=0.5), Movement(parameters)
    for parameter, gradient in zip(parameters, released.value.gradient, strict=True):
        parameter.grad = gradient
    by = {id(p): m for p, m in zip(parameters, rule.learning_rate_multipliers(), strict=True)}
    with multiplied_learning_rates(optimizer, by):
        optimizer.step()
    rule.updated(released.map(lambda _: before.lengths()))


class _Spy(Constant):
    """Holds what it is handed to its type."""

    name = "spy"
    calls = 0

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        _Spy.calls += 1
        assert type(seen) is Released
        assert all(type(summary) is Summary for summary in seen.value)
        assert type(context) is Context
        flat = [value for summary in seen.value for value in vars(summary).values()]
        assert all(
            isinstance(v, float | None) or all(isinstance(x, float) for x in v) for v in flat
        )
        return super().act(seen, context)


def test_a_controller_is_handed_released_values_and_public_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CONTROLLERS._makers, "spy", _Spy)
    private, net = training(
        ControlledClipping(controller="spy", interval=2), torch.randn(40, 4), steps=6
    )
    for _ in steps_of(private, net):
        pass
    private.close()
    assert _Spy.calls == 4


def test_thresholds_are_fixed_while_a_step_is_open() -> None:
    rule = ControlledClipping(interval=1, controller="random")
    private, net = training(rule, torch.randn(80, 4), steps=8)
    before, seen = None, set()
    for _ in steps_of(private, net):
        now = (private.engine.step, tuple(rule.bounds()), tuple(rule.shares()))
        if before is not None and before[0] == now[0]:
            assert now == before
        before = now
        seen.add(now)
    private.close()
    assert len({bounds for _, bounds, _ in seen}) > 4
    assert rule.sampling == "poisson"


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 12])
@pytest.mark.parametrize("allocation", ["uniform", "proportional", "minimum-variance"])
@pytest.mark.parametrize("mode", ["A", "B"])
@pytest.mark.parametrize(("together", "name"), [("layer", "weight"), ("auto", "lora_A.weight")])
def test_no_sample_moves_a_whitened_release_by_more_than_is_paid_for(
    groups: int, allocation: str, mode: str, together: str, name: str
) -> None:
    rule = ControlledClipping(
        mode=mode, controller="random", interval=1, allocation=allocation, groups=together
    )
    names, sizes = [f"h.{k}.{name}" for k in range(groups)], [3 * k + 2 for k in range(groups)]
    assert rule.partition(names, sizes) == list(range(groups))
    rule._analytic._current = [0.1 * (k + 1) for k in range(groups)]
    generator = torch.Generator().manual_seed(groups)
    rule._action = 2 * torch.rand(groups, 2, generator=generator) - 1
    sigma = 0.8
    scale = scale_noise(sigma, rule.bounds(), rule.shares(), rule.side_queries())
    assert scale.noise_multiplier == pytest.approx(sigma)
    norms = torch.rand(groups, 500, generator=generator, dtype=torch.float64).mul(20).sub(10).exp()
    norms[:, 0], norms[:, 1] = 1e12, 1e-12
    clipped = norms * rule.clip_factors(norms)["release"]
    energy = (clipped / torch.tensor(scale.stds).unsqueeze(1)).square().sum(0)
    for side in rule.side_queries():
        values = side.per_sample(norms if side.reads == "norms" else norms[:1])
        energy += (values / scale.side_stds[side.name]).square().sum(0)
    assert float(energy.max()) <= sigma**-2
    assert float(energy[0]) == pytest.approx(sigma**-2, rel=0.005)


def test_observing_costs_at_most_one_per_cent_more_noise() -> None:
    stds = {}
    for mode in "AB":
        rule = ControlledClipping(mode=mode)
        rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
        stds[mode] = scale_noise(1.0, rule.bounds(), rule.shares(), rule.side_queries()).stds
    ratios = [b / a for a, b in zip(stds["A"], stds["B"], strict=True)]
    assert max(ratios) <= 1.01
    assert min(ratios) > 1.005
    assert ControlledClipping().describe()["more_noise_for_observing"] == pytest.approx(
        max(ratios) - 1, abs=1e-6
    )


def test_a_loss_that_is_missing_is_refused_with_the_remedy() -> None:
    net = model()
    rows = [(row, 1) for row in torch.randn(8, 4)]
    private = dpclip.make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        rows,
        target_epsilon=8,
        expected_batch_size=8,
        steps=1,
        clipping=ControlledClipping(),
    )
    engine = private.engine
    engine.begin()
    engine.open_micro_batch(1)
    view = FactoredView(engine.groups, 1)
    with pytest.raises(PrivacyError, match=r"private\.backward\(losses\)"):
        engine.absorb(view)


def test_the_released_loss_is_the_mean_over_units_not_rows() -> None:
    """Rows of one unit count once, by their mean; the divisor is the expected batch size."""
    net = nn.Linear(1, 1)
    rows = [(torch.ones(1), value) for value in (1.0, 3.0, 5.0, 5.0)]
    private = dpclip.make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.0),
        rows,
        target_epsilon=1e6,
        target_delta=0.1,
        expected_batch_size=2,
        steps=1,
        clipping=ControlledClipping(),
        units=["a", "a", "b", "c"],
        rows_per_unit=2,
        key=SecretKey.for_tests(1),
    )
    private.engine.sampler.draw = lambda step, generation: [0, 1]  # type: ignore[method-assign,assignment,return-value]
    released: list[float] = []

    class Reader:
        def on_step_begin(self, step: int, generation: int) -> None: ...

        def on_step_end(self, step: int, released_step: Released[StepRelease]) -> None:
            released.append(float(released_step.value.sides["loss"][0]))

    private.observers.append(Reader())
    for batch in private.batches():
        targets = batch[1]
        with private.microbatch(batch):
            private.backward(targets.float() + 0 * net(torch.ones(len(targets), 1)).squeeze(1))
        private.step()
    std = private.engine.rule.side_queries()[1].noise_for(private.plan.noise_multiplier) * 2.5
    assert released[0] == pytest.approx((2.0 - 2.5) + (5.0 - 2.5), abs=5 * std)
    assert std < 0.2


def test_the_window_of_losses_follows_what_was_released() -> None:
    """It is wide until it is known where they lie, and its width is what a unit is said to move the
    sum by.
    """
    rule, widths = ControlledClipping(interval=1), []
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    loss = rule.side_queries()[1]
    assert loss.per_sample(torch.tensor([[0.0, 2.5, 3.0, 99.0]])).tolist() == [
        [-2.5, 0.0, 0.5, 2.5]
    ]
    for seed in range(40):
        query = rule.side_queries()[1]
        widths.append(query.sensitivity)
        assert float(query.per_sample(torch.tensor([[0.0, 99.0]])).abs().max()) == query.sensitivity
        sums = query.per_sample(torch.full((1, 8), 7.0)).sum(1).double()
        released = clipper_laws.released_to(rule, seed, divisor=8.0)
        rule.observe(
            released.map(lambda step, sums=sums: replace(step, sides={**step.sides, "loss": sums}))
        )
    assert widths == [2.5, 2.5, *[1.0] * 38]
    assert rule.side_queries()[1].per_sample(torch.tensor([[7.0, 0.0]])).tolist()[
        0
    ] == pytest.approx([0, -1], abs=0.01)
    assert rule.metrics()["released_loss"] == pytest.approx(7.0, abs=0.01)


# --- what controllers are told --------------------------------------------------------------------


def test_large_models_are_summarised_by_a_part_of_their_coordinates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Energy and noise are of the same coordinates, so their ratio is unbiased; small parameters
    are not lost.
    """
    monkeypatch.setattr(coordinates, "MOST", 4096)
    sizes = [100_000, 30_000, 7]
    summariser = Summariser([0, 1, 1], sizes, parents=[0, 1])
    generator = torch.Generator().manual_seed(0)
    gradients = [
        torch.randn(size, generator=generator) * scale
        for size, scale in zip(sizes, (2, 3, 3), strict=True)
    ]
    summary = summariser.summarise(
        StepRelease(gradients, {}, 1.0, (2.0, 3.0), {}, (2.0, 3.0, 3.0)), loss_offset=0.0
    )
    assert [e / n for e, n in zip(summary.energy, summary.noise, strict=True)] == pytest.approx(
        [1.0, 1.0], rel=0.1
    )
    assert sum(n / s**2 for n, s in zip(summary.noise, (2, 3), strict=True)) <= 4096
    assert summariser.tensor_state()["previous.2"].numel() == 1


def test_controllers_are_told_how_loud_the_noise_is() -> None:
    """sigma sqrt(d) / B for one group, whatever the threshold is."""
    rule, levels = ControlledClipping(interval=1, warmup=0.0, controller="quantile"), []
    act = rule.agent.act

    def kept(seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        levels.append(context.noise_level)
        return act(seen, context)

    rule.agent.act = kept  # type: ignore[method-assign]
    private, net = training(rule, torch.randn(80, 4, generator=torch.Generator().manual_seed(1)))
    for _ in steps_of(private, net):
        pass
    elements = sum(p.numel() for p in net.parameters())
    more = rule.describe()["more_noise_for_observing"] + 1
    expected = (
        private.plan.noise_multiplier
        * more
        * math.sqrt(elements)
        / private.plan.expected_batch_size
    )
    assert levels == pytest.approx([expected] * 24, rel=2e-3)


def test_controllers_are_told_what_groups_are_and_how_far_they_moved() -> None:
    """A tied embedding is an embedding; a group moves as far as its furthest parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.inner = nn.Embedding(7, 3), nn.LayerNorm(3), nn.Linear(3, 3)
            self.head = nn.Linear(3, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.inner(self.norm(self.words(words)))).flatten(0, 1)

    torch.manual_seed(0)
    net, contexts, weights = Tied(), [], []

    class Listener(Constant):
        def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
            contexts.append(context)
            weights.append([p.detach().clone() for p in net.parameters()])
            return super().act(seen, context)

    rule = ControlledClipping(interval=1)
    rule.agent = Listener()
    rows = [(torch.tensor([i % 7, i % 5, i % 3]), torch.tensor([0, 1, 2])) for i in range(40)]
    private = dpclip.make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.5),
        rows,
        target_epsilon=8,
        expected_batch_size=10,
        steps=3,
        clipping=rule,
        key=SecretKey.for_tests(1),
    )
    for words, targets in private.batches():
        with private.microbatch((words, targets)):
            losses = nn.functional.cross_entropy(net(words), targets.flatten(), reduction="none")
            private.backward(losses.view(len(words), -1).mean(1))
        private.step()
    private.close()
    assert [context.kinds for context in contexts] == [("embedding", "vector", "matrix")] * 3
    assert contexts[0].moved == ()
    for context, (before, after) in zip(contexts[1:], itertools.pairwise(weights), strict=True):
        changes = [(b - a).square().mean().item() for a, b in zip(before, after, strict=True)]
        lengths = [math.sqrt(c * w) for c, w in zip(changes, (3, 1, 1, 3, 1), strict=True)]
        moved = [lengths[0], max(lengths[1:3]), max(lengths[3:])]
        assert context.moved == pytest.approx(moved, rel=1e-5)
