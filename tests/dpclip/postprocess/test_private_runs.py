"""Clippers after the noise: what they see, when, what they cost (nothing), and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import dpclip
from dpclip.clipping import AdaClip, ClippingRule, PerLayer, StepRelease
from dpclip.engine.private_training import PrivateTraining
from dpclip.errors import InputError, PrivacyError
from dpclip.noise.keystream import SecretKey
from dpclip.postprocess import (
    CLIPPERS,
    AdaGC,
    AutoClip,
    FixedNorm,
    GradientClipper,
    ZClip,
    make_postprocessors,
)
from dpclip.released import Receipt, Released

ALL = "fixed+normalized+autoclip+zclip+adagc+agc+spam+stable-spam"


def run(
    clippers: list[GradientClipper],
    rule: ClippingRule | None = None,
    epsilon: float = 4.0,
    steps: int = 30,
) -> tuple[PrivateTraining, nn.Module, Iterator[None]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 2))
    data = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
    private = dpclip.make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        [(row, int(row.sum() > 0)) for row in data],
        target_epsilon=epsilon,
        expected_batch_size=20,
        steps=steps,
        physical_batch_size=7,
        clipping=rule,
        postprocess=clippers,
        key=SecretKey.for_tests(5),
    )

    def loop() -> Iterator[None]:
        for inputs, targets in private.batches():
            with private.microbatch((inputs, targets)):
                private.backward(
                    nn.functional.cross_entropy(net(inputs), targets, reduction="none")
                )
                yield
            private.step()

    return private, net, loop()


def finish(loop: Iterator[None]) -> int:
    return sum(1 for _ in loop)


def test_every_registered_clipper_is_tried_here() -> None:
    assert sorted(ALL.split("+")) == CLIPPERS.names()


@pytest.mark.parametrize("text", [*ALL.split("+"), ALL])
def test_no_clipper_changes_what_is_spent(text: str) -> None:
    plain, _, loop = run([])
    finish(loop)
    clipped, net, loop = run(make_postprocessors(text))
    micro_batches = finish(loop)
    assert clipped.guarantee() == plain.guarantee()
    assert clipped.plan == plain.plan
    assert micro_batches > 60
    assert [c.state_dict()["steps"] for c in clipped.engine.postprocess] == [30] * len(
        clipped.engine.postprocess
    )
    assert all(p.isfinite().all() for p in net.parameters())


def test_observers_are_told_what_was_released() -> None:
    """A clipper in between changes the update, not the record of the release."""

    class Kept:
        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_step_begin(self, step: int, generation: int) -> None: ...

        def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
            self.norms.append(
                math.sqrt(sum(float(g.square().sum()) for g in released.value.gradient))
            )

    found = []
    for clippers in ([], [FixedNorm(max_grad_norm=1e-9)]):
        private, net, loop = run(clippers, steps=1)
        kept = Kept()
        private.observers.append(kept)
        start = [p.detach().clone() for p in net.parameters()]
        finish(loop)
        moved = math.sqrt(
            sum(
                float((p.detach() - s).square().sum())
                for p, s in zip(net.parameters(), start, strict=True)
            )
        )
        found.append((kept.norms, moved))
    assert found[0][0] == found[1][0]
    assert found[0][1] > 1e-3
    assert found[1][1] < 1e-7  # weights are rounded


def test_the_ratio_to_the_noise_floor_is_about_one_whatever_the_noise_is() -> None:
    for rule in (None, PerLayer(0.01), PerLayer(50.0)):
        clipper = AutoClip(percentile=100)
        private, _, loop = run([clipper], rule, epsilon=0.5)
        finish(loop)
        ratios = clipper.state_dict()["history"]["global"]
        assert float(ratios.mean()) == pytest.approx(1.0, abs=0.15)
        assert 0.02 < float(ratios.std()) < 0.12  # 1/sqrt(2 d) for d = 212 is 0.049
        private.close()


def test_noise_alone_looks_as_predicted() -> None:
    """d coordinates of noise: mean sqrt(d) s, coefficient of variation 1/sqrt(2 d); ZClip flags
    under 3 % of it.
    """
    d, s = 67_775, 1 / 256
    parameter = nn.Parameter(torch.zeros(d))
    history = AutoClip(percentile=100, input="noised")
    zclip = ZClip(warmup_steps=25)
    for clipper in (history, zclip):
        clipper.bind([("p", parameter)], private=True)
    draw = torch.Generator().manual_seed(0)
    flagged = 0
    for step in range(275):
        gradient = torch.randn(d, generator=draw) * s
        for clipper in (history, zclip):
            released = Released(
                StepRelease([gradient.clone()], {}, 1.0, (s,), {}, (s,)),
                Receipt(step, 0, 1.0, step),
            )
            clipper.apply(released)
        flagged += zclip._report.clipped
    norms = history.state_dict()["history"]["global"].double()
    assert float(norms.mean()) == pytest.approx(math.sqrt(d) * s, rel=0.001)
    assert float(norms.std()) == pytest.approx(s / math.sqrt(2), rel=0.15)
    assert flagged <= 8


def test_a_jump_of_the_noise_is_no_spike() -> None:
    """Ten times the noise: the norm jumps, its ratio to the noise floor does not."""
    parameter = nn.Parameter(torch.zeros(5000))
    outs = {}
    for wanted in ("auto", "noised"):
        clipper = ZClip(input=wanted, warmup_steps=10, max_grad_norm=None)
        clipper.bind([("p", parameter)], private=True)
        draw = torch.Generator().manual_seed(0)
        for step in range(60):
            s = 0.1 if step < 30 else 1.0
            gradient = torch.randn(5000, generator=draw) * s
            receipt = Receipt(step, 0, 1.0, step)
            after = clipper.apply(
                Released(StepRelease([gradient], {}, 1.0, (s,), {}, (s,)), receipt)
            ).value
        outs[wanted] = float(after.gradient[0].norm())
    assert outs["auto"] == pytest.approx(math.sqrt(5000), rel=0.05)
    assert outs["noised"] < 0.2 * outs["auto"]


def test_the_denoised_norm_is_the_signals() -> None:
    parameter = nn.Parameter(torch.zeros(20_000))
    clipper = AutoClip(percentile=100, input="denoised")
    clipper.bind([("p", parameter)], private=True)
    draw = torch.Generator().manual_seed(0)
    signal = torch.zeros(20_000)
    signal[0] = 3.0
    for step in range(50):
        gradient = signal + torch.randn(20_000, generator=draw) * 0.02
        clipper.apply(
            Released(
                StepRelease([gradient], {}, 1.0, (0.02,), {}, (0.02,)), Receipt(step, 0, 1.0, step)
            )
        )
    assert float(clipper.state_dict()["history"]["global"].mean()) == pytest.approx(3.0, rel=0.01)
    nothing = Released(
        StepRelease([torch.zeros(20_000)], {}, 1.0, (0.02,), {}, (0.02,)), Receipt(0, 0, 1.0, 0)
    )
    clipper.apply(nothing)
    floor = (2 * 20_000) ** 0.25 * 0.02
    assert float(clipper.state_dict()["history"]["global"][-1]) == pytest.approx(floor, rel=1e-3)


def test_small_tensors_are_not_throttled_by_noise_alone() -> None:
    """AdaGC's 1.04 clips pure noise in a tensor of 10 elements most of the time; the private form
    seldom does.
    """
    shares = {}
    for private in (False, True):
        parameter = nn.Parameter(torch.zeros(10))
        clipper = AdaGC([("p", parameter)], lambda_abs=None)
        clipper.bind([("p", parameter)], private=private)
        draw, clipped = torch.Generator().manual_seed(0), 0
        for _ in range(600):
            parameter.grad = torch.randn(10, generator=draw)
            clipped += clipper.step().clipped
        shares[private] = clipped / 500
    assert shares[False] > 0.6
    assert shares[True] < 0.15


def test_a_clipper_leaves_word_of_the_noise_that_is_left() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    clipper = FixedNorm(max_grad_norm=1.0)
    clipper.bind([("p", parameter)], private=True)
    step = StepRelease([torch.tensor([4.0, 0.0, 0.0, 0.0])], {}, 1.0, (0.5,), {}, (0.5,))
    after = clipper.apply(Released(step, Receipt(0, 0, 1.0, 0))).value
    assert after.coordinate_stds == pytest.approx((0.125,))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIPPERS.names())
def test_raw_gradients_of_a_private_run_are_refused(name: str) -> None:
    """In the loop, between backward and step, a clipper would read what was not released."""
    private, net, loop = run([])
    (clipper,) = make_postprocessors(name)
    clipper.bind(net.named_parameters())
    next(loop)
    with pytest.raises(PrivacyError, match=r"make_private\(postprocess"):
        clipper.step()
    private.close()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    clipper.step()  # the run has ended


def test_a_hook_on_the_optimizer_sees_released_gradients_only() -> None:
    private, net, loop = run([])
    clipper = FixedNorm(net.named_parameters(), max_grad_norm=1e-9)
    clipper.attach(private.engine.optimizer)
    start = [p.detach().clone() for p in net.parameters()]
    finish(loop)
    assert clipper.state_dict()["steps"] == 30
    assert (
        max(
            float((p.detach() - s).abs().max())
            for p, s in zip(net.parameters(), start, strict=True)
        )
        < 1e-5
    )


def test_what_was_not_released_is_refused() -> None:
    clipper = ZClip([nn.Parameter(torch.zeros(3))])
    with pytest.raises(PrivacyError, match="not what a step released"):
        clipper.apply([torch.zeros(3)])  # type: ignore[arg-type]


def test_a_floor_that_is_not_known_is_not_guessed() -> None:
    """AdaClip's noise differs between coordinates."""
    private, _, loop = run([ZClip()], AdaClip(), steps=3)
    finish(loop)
    private.close()
    private, _, loop = run([ZClip(input="ratio")], AdaClip(), steps=3)
    with pytest.raises(InputError, match="choose input=noised"):
        finish(loop)
    private.close()


def test_without_privacy_the_same_road_has_no_floor() -> None:
    clipper = AutoClip(percentile=100)
    private, _, loop = run([clipper], epsilon=math.inf, steps=4)
    assert not clipper.private
    finish(loop)
    assert clipper.state_dict()["counts"] == {"global": 4}
    assert private.engine.postprocess == [clipper]


def test_reports_are_of_released_values() -> None:
    fields = {f.name for f in dataclasses.fields(ZClip()._report)}
    assert fields == {"norm", "clipped", "factor", "skipped", "scales"}
    assert isinstance(ZClip([nn.Parameter(torch.zeros(2))]).metrics()["zclip_mean"], float)
    assert isinstance(torch.zeros(1), Tensor)
