"""Thresholds under a controller: what the controllers do, what is kept, and what is refused."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from dpclip.clipping import (
    ControlledClipping,
    Flat,
    ParameterKind,
    PerLayerQuantile,
    RunShape,
    StepRelease,
    make_rule,
)
from dpclip.clipping.control import (
    CONTROLLERS,
    Context,
    Controller,
    Summary,
    make_controller,
)
from dpclip.clipping.control.baselines import Constant
from dpclip.clipping.control.context import RATE
from dpclip.clipping.control.features import width
from dpclip.errors import InputError
from dpclip.released import Released
from dpclip.testing import rules as clipper_laws
from tests.support.controlled import Recorder, steps_of, training

CASES = [
    f"rl:interval=1,mode={mode},controller={name}" for mode in "AB" for name in CONTROLLERS.names()
]


@pytest.mark.parametrize(
    "text",
    [
        *CASES,
        "rl:interval=3",
        "rl:interval=1,groups=layer",
        "rl:interval=1,groups=tensor",
        "rl:interval=1,groups=model,rate_groups=tensor",
    ],
)
def test_every_controller_in_every_mode_keeps_the_laws(text: str) -> None:
    clipper_laws.check_rule(lambda: make_rule(text), 1.0, 1)


# --- the controllers ------------------------------------------------------------------------------


def test_a_controller_that_departs_by_nothing_is_the_analytic_one() -> None:
    rule = ControlledClipping(controller="quantile", interval=1, groups="layer")
    plain = PerLayerQuantile(quantile=0.1, first_rate=2.0)
    for each in (rule, plain):
        each.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    for seed in range(5):
        released = clipper_laws.released_to(rule, seed)
        for each in (rule, plain):
            each.observe(released)
        assert rule.bounds() == plain.bounds()
        assert rule.shares() == pytest.approx(plain.shares())
    assert rule.bounds() != PerLayerQuantile(quantile=0.1).bounds()


def test_the_constant_controller_stays_where_it_began() -> None:
    rule = ControlledClipping(controller="constant", interval=1)
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    before = rule.bounds()
    for seed in range(5):
        rule.observe(clipper_laws.released_to(rule, seed))
    assert rule.bounds() == before


def test_the_schedule_falls_from_the_highest_to_the_lowest_reach() -> None:
    rule = ControlledClipping(controller="schedule", mode="A", interval=1, step_limit=10, warmup=0)
    rule.set_run(RunShape(10, 8))
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    start = rule.bounds()[0]
    seen = []
    for seed in range(10):
        rule.observe(clipper_laws.released_to(rule, seed))
        seen.append(rule.bounds()[0] / start)
    assert seen[0] == pytest.approx(2**0.8)
    assert seen[-1] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(seen))


def test_a_decision_changes_no_more_than_the_step_limit() -> None:
    rule = ControlledClipping(
        controller="random", interval=1, mode="A", step_limit=0.1, groups="layer"
    )
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    before = rule.bounds()
    for seed in range(20):
        rule.observe(clipper_laws.released_to(rule, seed))
        moved = [abs(math.log(a / b)) for a, b in zip(before, rule.bounds(), strict=True)]
        assert 0 < max(moved) <= 0.1 * (1 + 1e-5)
        before = rule.bounds()


def test_the_agent_remembers_what_was_executed() -> None:
    rule = ControlledClipping(interval=1, mode="A")
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    executed = []
    for seed in range(12):
        rule.observe(clipper_laws.released_to(rule, seed))
        executed.append(rule._action.clone())
    memory = rule.agent.tensor_state()["memory.actions"]
    assert torch.equal(memory, torch.stack(executed[:-1]))
    assert rule.agent.metrics()["transitions"] == 11


def test_a_policy_can_be_kept_and_begun_with(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    rule = ControlledClipping(interval=1)
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    for seed in range(12):
        rule.observe(clipper_laws.released_to(rule, seed))
    save_file(
        {k: v.contiguous() for k, v in rule.agent.policy().items()}, tmp_path / "policy.safetensors"
    )
    other = ControlledClipping(interval=1, policy=str(tmp_path / "policy.safetensors"))
    other.partition(clipper_laws.NAMES[:2], clipper_laws.SIZES[:2])
    assert other.describe()["policy"] == "policy.safetensors"
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"broken\.safetensors cannot be used"):
        ControlledClipping(policy=str(tmp_path / "broken.safetensors"))


def test_its_state_is_json_and_goes_on_in_the_middle_of_an_interval() -> None:
    rule = ControlledClipping(interval=4)
    rule.set_run(RunShape(100, 8))
    rule.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    for seed in range(50):
        rule.observe(clipper_laws.released_to(rule, seed))
    other = ControlledClipping(interval=4)
    other.set_run(RunShape(100, 8))
    other.partition(clipper_laws.NAMES, clipper_laws.SIZES)
    other.load_public_state(json.loads(json.dumps(rule.public_state())))
    other.load_tensor_state({k: v.clone() for k, v in rule.tensor_state().items()})
    for seed in range(50, 60):
        for each in (rule, other):
            each.observe(clipper_laws.released_to(each, seed))
        assert other.bounds() == rule.bounds()
        assert other.shares() == rule.shares()
        assert other.metrics() == rule.metrics()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rl:mode=D", "mode = 'D' is unknown: choose one of A, B"),
        (
            "rl:controller=magic",
            "controller 'magic' is unknown: choose one of constant, quantile, random",
        ),
        ("rl:groups=head", "choose one of tensor, layer, block, model, auto"),
        ("rl:interval=0", "interval = 0"),
        ("rl:warmup=1", "warmup"),
        ("rl:loss_share=0.99,count_share=0.5", "below 1 together"),
        ("rl:reward=luck", "choose one of loss, signal, both"),
        ("rl:allocation=best", "allocation 'best'"),
    ],
)
def test_bad_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rule(text)


def test_unknown_controllers_are_refused() -> None:
    with pytest.raises(InputError, match="choose one of"):
        make_controller("none", None)  # type: ignore[arg-type]
    assert issubclass(Constant, Controller)


class _Apart(Constant):
    """Wants other thresholds and rates for each group it sees."""

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        return torch.linspace(-1, 1, context.executed.numel()).view_as(context.executed)


def test_groups_that_are_clipped_together_may_be_seen_apart() -> None:
    rule = ControlledClipping(
        groups="block", rate_groups="tensor", interval=1, warmup=0.0, step_limit=10.0
    )
    rule.agent = _Apart()
    names = ["h.0.a.weight", "h.0.a.bias", "h.1.a.weight", "h.1.a.bias", "head.weight"]
    sizes = [4, 2, 4, 2, 8]
    assert rule.partition(names, sizes) == [0, 0, 1, 1, 2]
    before = rule.bounds()
    gradient = [torch.randn(size) for size in sizes]
    sides = {"within": torch.zeros(3), "loss": torch.zeros(1)}
    step = StepRelease(gradient, sides, 8.0, (1.0,) * 3, {"within": 1.0, "loss": 1.0}, (1.0,) * 5)
    rule.observe(clipper_laws.released_to(Flat(), 0).map(lambda _: step))
    assert rule._action.shape == (5, 3)
    wanted = torch.linspace(-1, 1, 15).view(5, 3).double()
    analytic = rule._analytic.bounds()
    means = [wanted[:2, 0].mean(), wanted[2:4, 0].mean(), wanted[4, 0]]
    assert rule.bounds() == pytest.approx(
        [a * 2 ** float(m) for a, m in zip(analytic, means, strict=True)]
    )
    assert len(before) == len(rule.shares()) == 3
    assert rule.learning_rate_multipliers() == pytest.approx([4 ** float(w) for w in wanted[:, 2]])
    coarse = ControlledClipping(groups="layer", rate_groups="model")
    assert coarse.partition(names, [4, 2, 4, 2, 8]) == [0, 0, 1, 1, 2]
    assert len(coarse._layout.parents) == 3, "never coarser than what is clipped together"


def test_adapters_are_clipped_by_layer_and_other_models_as_a_whole() -> None:
    adapters = [
        "m.h.0.q.lora_A.default.weight",
        "m.h.0.q.lora_B.default.weight",
        "m.h.1.q.lora_A.default.weight",
    ]
    rule = ControlledClipping(controller="quantile")
    assert rule.partition([*adapters, "m.score.weight"], [8, 8, 8, 4]) == [0, 0, 1, 2]
    rule._analytic._current = [0.1, 0.2, 0.4]
    assert rule.bounds() == pytest.approx([0.2] * 3), (
        "one threshold, which follows the released quantiles"
    )
    assert len(rule.shares()) == len(rule.side_queries()[0].per_sample(torch.ones(3, 5))) == 3
    assert (
        rule.partition(["m.h.0.q.weight", "m.h.1.q.weight", *adapters[:2]], [8, 8, 8, 8]) == [0] * 4
    )
    assert ControlledClipping(groups="model").partition(adapters, [8, 8, 8]) == [0, 0, 0]


def test_what_optimizers_average_has_one_scale_wherever_thresholds_go() -> None:
    """Noise in the gradient that leaves the rule stays where it was at the start, and is reported
    as it is.
    """
    rule = ControlledClipping(interval=1, warmup=0.0, controller="random", groups="layer")
    data = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
    private, net = training(rule, data)
    recorder = Recorder(private)
    for _ in steps_of(private, net):
        pass
    first = rule._first_bounds
    shares = [s for _, _, s, _ in recorder.seen]
    for (released, _, _, _), share in zip(recorder.seen[1:], shares, strict=False):
        step = released.value
        expected = [c / math.sqrt(part) for c, part in zip(first, share, strict=True)]
        ratio = [std / e for std, e in zip(step.stds, expected, strict=True)]
        assert ratio == pytest.approx([ratio[0]] * len(ratio), rel=1e-9)
        each = [step.stds[owner] / step.divisor for owner in rule._layout.owners]
        assert list(step.coordinate_stds) == pytest.approx(each, rel=1e-12)


class _Faster(Constant):
    """Wants the highest rate at once."""

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        action = torch.zeros_like(context.executed)
        action[:, RATE] = 1.0
        return action


def test_a_controller_sets_the_learning_rate_and_leaves_the_optimizers_alone() -> None:
    """The update is the multiplied one; schedules and checkpoints see the rate that was there."""

    def moved(controller: Controller | None) -> tuple[Tensor, float, float]:
        rule = ControlledClipping(controller="quantile", interval=1, warmup=0.0, step_limit=10.0)
        rule.agent = controller or rule.agent
        private, net = training(
            rule, torch.randn(80, 4, generator=torch.Generator().manual_seed(1)), steps=1
        )
        before = torch.cat([p.detach().reshape(-1).clone() for p in net.parameters()])
        for _ in steps_of(private, net):
            pass
        after = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        return (
            after - before,
            private.engine.optimizer.param_groups[0]["lr"],
            rule.metrics()["rate_multiplier"],
        )

    plain, usual, by_one = moved(None)
    faster, rate, by = moved(_Faster())
    assert by_one == 1.0
    assert by == pytest.approx(4.0)
    assert rate == usual == 0.5
    torch.testing.assert_close(faster, 4 * plain, rtol=1e-4, atol=1e-6)


def begun(rule: ControlledClipping, kinds: list[ParameterKind], steps: int) -> ControlledClipping:
    rule.set_run(RunShape(steps, 16))
    rule.set_parameter_kinds(kinds)
    rule.partition([f"{index}.weight" for index in range(len(kinds))], [4] * len(kinds))
    return rule


LANGUAGE: list[ParameterKind] = ["embedding", "matrix", "vector"]


@pytest.mark.parametrize("steps", [24, 120])
def test_runs_of_language_models_begin_with_a_policy_that_ships(steps: int) -> None:
    """The files fit what the agent observes, and are in the package."""
    rule, untaught = (
        begun(ControlledClipping(policy=policy), LANGUAGE, steps) for policy in ("auto", "none")
    )
    assert "policy" not in untaught.describe()
    observation = torch.zeros(len(untaught._layout.parents), width(3))
    taught = rule.agent._agent.act(observation, explore=False)
    assert not torch.equal(taught, torch.zeros_like(taught))
    assert torch.equal(
        untaught.agent._agent.act(observation, explore=False), torch.zeros_like(taught)
    )
    assert float(taught[:, :RATE].abs().max()) < 0.1, "it was taught learning rates, not thresholds"


@pytest.mark.parametrize(
    ("settings", "kinds", "steps", "file"),
    [
        ({}, LANGUAGE, 36, "public-short"),
        ({"mode": "A"}, LANGUAGE, 37, "public-long"),
        ({}, LANGUAGE, 240, "public-long"),
        ({}, LANGUAGE, 241, None),
        ({}, LANGUAGE, 0, None),
        ({"mode": "C"}, ["embedding"], 24, None),
        ({}, ["matrix", "vector"], 24, None),
        ({}, ["embedding", "adapter"], 24, None),
        ({"controller": "quantile"}, ["embedding"], 24, None),
        ({"policy": "public"}, ["adapter"], 24, "public-short"),
        ({"policy": "public"}, LANGUAGE, 1000, "public-long"),
    ],
)
def test_which_policy_a_run_begins_with(
    settings: dict[str, str], kinds: list[ParameterKind], steps: int, file: str | None
) -> None:
    """Unless asked for, none where it was not taught or did harm."""
    rule = begun(ControlledClipping(**settings), kinds, steps)  # type: ignore[arg-type]
    assert rule.describe().get("policy") == (file and f"{file}.safetensors")


def test_the_policies_that_ship_have_no_say_in_the_noise() -> None:
    with pytest.raises(InputError, match="mode A or B"):
        ControlledClipping(mode="C", policy="public")
