"""The step: sums, empty batches, poisoned samples, micro-batching, and what may leave it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dpclip
from dpclip.clipping import ClippingRule, Flat, SideQuery, StepRelease
from dpclip.engine.private_training import PrivateTraining
from dpclip.errors import InputError, ReplayError
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import scale_noise
from dpclip.per_sample.forms.factored import Dense
from dpclip.released import Released
from tests.support.engine_runs import ROWS, Recorder, data, make, row_losses, run


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("size", [1, 3, 40])
def test_micro_batching_is_a_pure_performance_knob(size: int) -> None:
    for a, b in zip(
        run(make(physical_batch_size=size)), run(make(physical_batch_size=7)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("without_noise")
def test_one_step_is_the_clipped_sum_over_the_public_expected_batch() -> None:
    private = make(steps=1, expected_batch_size=ROWS, clipping=Flat(0.3))
    model = private.model
    before = [p.detach().clone() for p in model.parameters()]
    expected = [torch.zeros_like(p) for p in before]
    for inputs, target in data():
        found = torch.autograd.grad(
            row_losses(model, (inputs[None], target[None])).sum(), list(model.parameters())
        )
        norm = math.sqrt(sum(float(g.square().sum()) for g in found))
        for total, g in zip(expected, found, strict=True):
            total += g * min(1.0, 0.3 / norm)
    for old, new, total in zip(before, run(private), expected, strict=True):
        assert torch.allclose(new, old - 0.1 * total / ROWS, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_leaves_the_sum_as_without_it(poison: float) -> None:
    clean = data()
    spoilt = [*clean]
    spoilt[7] = (torch.full((4,), poison), torch.ones(1))
    without = [x for i, x in enumerate(clean) if i != 7]
    full = {"steps": 1, "expected_batch_size": 39, "public_units": 39}
    ours = make(spoilt, **full)
    theirs = make(without, **full)
    for a, b in zip(run(ours), run(theirs), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert ours.engine.ledger.charges == theirs.engine.ledger.charges == 1


def test_an_empty_batch_is_a_noise_only_step_that_is_charged() -> None:
    private = make(steps=30, expected_batch_size=1)
    recorder = Recorder(private)
    sizes = [len(private.engine.sampler.draw(t, 0)) for t in range(30)]
    assert 0 in sizes
    run(private)
    assert private.engine.ledger.charges == len(recorder.releases) == 30
    empty = recorder.releases[sizes.index(0)]
    std = scale_noise(private.plan.noise_multiplier, [1.0], [1.0]).stds[0]
    values = torch.cat([t.flatten() for t in empty.gradient])
    assert 0.3 * std < float(values.std()) < 3 * std


def test_the_charge_comes_before_the_sample() -> None:
    private = make()
    order: list[str] = []
    charge, draw = private.engine.ledger.charge, private.engine.sampler.draw
    private.engine.ledger.charge = lambda *a: (order.append("charge"), charge(*a))[1]  # type: ignore[method-assign]
    object.__setattr__(
        private.engine.sampler, "draw", lambda *a: (order.append("draw"), draw(*a))[1]
    )
    run(private)
    assert order == ["charge", "draw"] * 6


def test_a_refused_step_draws_nothing() -> None:
    private = make()
    run(private)
    drawn: list[int] = []
    object.__setattr__(private.engine.sampler, "draw", lambda *a: drawn.append(1))
    with pytest.raises(dpclip.BudgetExceededError):
        private.engine.begin()
    assert drawn == []
    assert private.engine.ledger.charges == 6


def test_nothing_that_leaves_the_step_depends_on_raw_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the released stream held fixed, poisoned raw data change neither the model nor any
    observer's view.
    """

    class Nosy(Flat):
        """A rule that asks for a statistic and moves its threshold by what was released."""

        def side_queries(self) -> list[SideQuery]:
            return [
                SideQuery("count", 1.0, 50.0, lambda norms: (norms <= self.max_grad_norm).double())
            ]

        def observe(self, released: Released[StepRelease]) -> None:
            self.max_grad_norm *= 1.1 if float(released.value.sides["count"]) > 5 else 0.9

    canned: list[StepRelease] = []
    original = WhiteGaussian().release

    def outcome(dataset: list[Any]) -> tuple[list[Tensor], float, list[StepRelease], int]:
        private = make(dataset, clipping=Nosy(1.0))
        recorder = Recorder(private)
        weights = run(private)
        rule = private.engine.rule
        assert isinstance(rule, Nosy)
        return weights, rule.max_grad_norm, recorder.releases, private.engine.ledger.charges

    def record(*args: Any) -> Released[StepRelease]:
        released = original(*args)
        canned.append(released.value)
        return released

    monkeypatch.setattr(WhiteGaussian, "release", staticmethod(record))
    honest = outcome(data())
    stream = iter(list(canned))

    def replay(*args: Any) -> Released[StepRelease]:
        value = next(stream)
        return original(*args).map(lambda _: value)

    monkeypatch.setattr(WhiteGaussian, "release", staticmethod(replay))
    poisoned = outcome([(x * 1e4, y - 77) for x, y in data(9)])
    assert poisoned[1:2] + poisoned[3:] == honest[1:2] + honest[3:]
    for a, b in zip(honest[0], poisoned[0], strict=True):
        assert torch.equal(a, b)
    for left, right in zip(honest[2], poisoned[2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left.gradient, right.gradient, strict=True))


def test_the_same_noise_never_meets_two_gradients() -> None:
    private = make()
    engine = private.engine
    engine.begin()
    engine.finish()
    engine.step = 0
    engine.begin()
    step = engine._current()
    step.sums = engine._empty_sums()
    form = Dense(torch.full((1, *engine.parameters[0].shape), 1e-6))
    step.sums["release"].take(0, form, torch.ones(1, dtype=torch.float64), None)
    with pytest.raises(ReplayError):
        engine.finish()
    assert engine.ledger.charges == 1


def test_an_identical_replay_is_charged_once_and_releases_the_same() -> None:
    private = make()
    engine, recorder = private.engine, Recorder(private)
    first = [t.clone() for t in _one(private).gradient]
    engine.step = 0
    with torch.no_grad():
        for parameter, fresh in zip(engine.parameters, make().engine.parameters, strict=True):
            parameter.copy_(fresh)
    second = _one(private).gradient
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert engine.ledger.charges == 1
    assert len(recorder.releases) == 2


def _one(private: PrivateTraining) -> StepRelease:
    """Take one logical step."""
    model = private.model
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(row_losses(model, batch))
        if private.step():
            break
    recorder = next(o for o in private.observers if isinstance(o, Recorder))
    return recorder.releases[-1]


class _TwoGroups(ClippingRule):
    """Weights in one group, biases in the other, with unequal shares."""

    name = "two-groups"

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        return [int(name.endswith("bias")) for name in names]

    def bounds(self) -> list[float]:
        return [0.5, 0.1]

    def shares(self) -> list[float]:
        return [0.8, 0.2]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        return {"release": (torch.tensor(self.bounds()).unsqueeze(1) / norms).clamp(max=1.0)}


def test_a_rule_with_groups_needs_no_change_in_the_engine() -> None:
    private = make(clipping=_TwoGroups(), steps=40)
    recorder = Recorder(private)
    run(private)
    scale = scale_noise(private.plan.noise_multiplier, [0.5, 0.1], [0.8, 0.2])
    biases = torch.stack([r.gradient[1] * r.divisor for r in recorder.releases])
    assert float(biases.std()) == pytest.approx(scale.stds[1], rel=0.35)
    assert scale.stds[0] != pytest.approx(scale.stds[1], rel=0.35)


def test_without_privacy_the_step_is_plain_sgd_on_poisson_batches() -> None:
    private = make(target_epsilon=math.inf, steps=1, expected_batch_size=ROWS)
    model = private.model
    before = [p.detach().clone() for p in model.parameters()]
    inputs, targets = (torch.stack(part) for part in zip(*data(), strict=True))
    gradients = torch.autograd.grad(
        row_losses(model, (inputs, targets)).mean(), list(model.parameters())
    )
    for old, new, gradient in zip(before, run(private), gradients, strict=True):
        assert torch.allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-7)
    assert math.isinf(private.guarantee().epsilon)


def test_units_with_many_rows_count_once() -> None:
    people = [i % 8 for i in range(ROWS)]
    private = make(units=people, expected_batch_size=4, rows_per_unit=3, steps=2)
    assert private.plan.units == 8
    run(private)
    assert private.guarantee().unit == "all rows of one unit"


@pytest.mark.usefixtures("without_noise")
def test_a_unit_moves_the_sum_by_at_most_the_threshold_however_many_rows_it_has() -> None:
    people = [0] * (ROWS - 1) + [1]
    private = make(
        [(100 * x, y) for x, y in data()],
        units=people,
        expected_batch_size=2,
        rows_per_unit=ROWS,
        steps=1,
    )
    recorder = Recorder(private)
    run(private)
    release = recorder.releases[0]
    norm = release.divisor * math.sqrt(sum(float(t.square().sum()) for t in release.gradient))
    assert 1.0 < norm <= 2.0 * (1 + 1e-6)


def test_optimizer_of_other_parameters_is_refused() -> None:
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    with pytest.raises(InputError, match="0 in common"):
        dpclip.make_private(
            model, torch.optim.SGD(other.parameters(), lr=0.1), data(), target_epsilon=1, steps=1,
            expected_batch_size=4, accountant="rdp",
        )  # fmt: skip


def test_batch_norm_is_refused_by_the_name_of_the_module() -> None:
    with pytest.raises(InputError, match="'1' is a BatchNorm1d"):
        make(model=nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)))


@pytest.mark.parametrize("name", ["seed", "loss_reduction", "row_cost"])
def test_arguments_of_earlier_versions_are_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(InputError, match=f"no argument '{name}' any more: "):
        make(**{name: 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        make(sed=1)


def test_guarantee_of_a_known_key_is_conditional_and_of_a_secret_key_worst_case() -> None:
    assert make().guarantee().kind == "conditional"
    assert make(key=None).guarantee().kind == "worst-case"


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (4, 4), (32, 32), (ROWS, 64)])
def test_every_micro_batch_has_one_size_that_leaves_vector_kernels_nothing_over(
    size: int, expected: int
) -> None:
    private = make(physical_batch_size=size, expected_batch_size=ROWS, steps=2)
    seen: list[int] = []
    for batch in private.batches():
        if private._pending is not None and private._pending.check is None:
            seen.append(len(batch[0]))
        with private.microbatch(batch):
            private.backward(row_losses(private.model, batch))
        private.step()
    assert seen == [expected] * (2 * -(-ROWS // expected))


def test_the_loop_tells_what_was_forgotten() -> None:
    private = make(physical_batch_size=ROWS)
    with pytest.raises(RuntimeError, match="was not used"):
        list(private.batches())
    private = make(physical_batch_size=ROWS)

    def never_step() -> None:
        for batch in private.batches():
            with private.microbatch(batch):
                private.backward(row_losses(private.model, batch))

    with pytest.raises(RuntimeError, match="call step"):
        never_step()
