"""What every registered clipper has to keep, and what differs between them on purpose."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpclip.errors import InputError
from dpclip.postprocess import (
    AGC,
    CLIPPERS,
    AdaGC,
    AutoClip,
    FixedNorm,
    GradientClipper,
    Normalized,
    SpikeAware,
    StableSPAM,
    ZClip,
    make_postprocessors,
)

SHAPES = [(3, 4), (5,), (1,), (2, 3, 2)]
Make = Callable[..., GradientClipper]


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (f"layer.{i}", nn.Parameter(torch.randn(s, generator=draw).to(dtype)))
        for i, s in enumerate(SHAPES)
    ]


def gradients(step: int, scale: float = 1.0) -> list[Tensor]:
    """A run with a spike now and then."""
    draw = torch.Generator().manual_seed(1000 + step)
    spike = 30.0 if step % 17 == 11 else 1.0
    return [scale * spike * torch.randn(s, generator=draw) for s in SHAPES]


def take(
    clipper: GradientClipper, named: list[tuple[str, nn.Parameter]], step: int, scale: float = 1.0
) -> list[Tensor]:
    for (_, parameter), gradient in zip(named, gradients(step, scale), strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    clipper.step()
    return [p.grad.clone() for _, p in named if p.grad is not None]


def kinds() -> dict[str, Make]:
    """Every registered clipper, with warm-ups short enough to be left behind."""

    short = {"warmup_steps": 5, "skip_steps": 3, "window": 10}

    def maker(kind: type[GradientClipper]) -> Make:
        known = set(inspect.signature(kind).parameters)
        usual = {key: value for key, value in short.items() if key in known}
        return lambda parameters=None, **more: kind(parameters, **{**usual, **more})

    return {name: maker(kind) for name, kind in ((name, CLIPPERS.get(name)) for name in CLIPPERS)}


KINDS = kinds()
every = pytest.mark.parametrize("name", CLIPPERS.names())


@every
@pytest.mark.parametrize("stop", [3, 4, 7, 12, 23])
def test_a_resumed_clipper_goes_on_bit_for_bit(name: str, stop: int) -> None:
    named, other = net(), net()
    whole = KINDS[name](named)
    for step in range(stop):
        take(whole, named, step)
    kept = copy.deepcopy(whole.state_dict())
    resumed = KINDS[name](other)
    resumed.load_state_dict(torch_round_trip(kept))
    for step in range(stop, stop + 25):
        for mine, theirs in zip(take(whole, named, step), take(resumed, other, step), strict=True):
            assert torch.equal(mine, theirs)
    assert repr(whole.state_dict()) == repr(resumed.state_dict())


def torch_round_trip(state: dict[str, object]) -> dict[str, object]:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@every
def test_statistics_are_wide_whatever_the_gradients_are(name: str) -> None:
    named = net(dtype=torch.bfloat16)
    clipper = KINDS[name](named)
    for step in range(8):
        take(clipper, named, step)

    def tensors(value: object) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [t for v in value.values() for t in tensors(v)] if isinstance(value, dict) else []

    assert {t.dtype for t in tensors(clipper.state_dict())} <= {torch.float32, torch.float64}
    assert {p.grad.dtype for _, p in named} == {torch.bfloat16}  # type: ignore[union-attr]


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_forgotten(name: str, bad: float) -> None:
    """Before, in and after warm-up: the step's gradient is 0 and nothing is learned from it."""
    named, other = net(), net()
    clipper, spared = KINDS[name](named), KINDS[name](other)
    for step in range(30):
        if step in (0, 2, 5, 20):
            for _, parameter in named:
                parameter.grad = torch.full_like(parameter, bad)
            report = clipper.step()
            assert report.skipped
            assert all(not p.grad.any() for _, p in named)  # type: ignore[union-attr]
        for mine, theirs in zip(take(clipper, named, step), take(spared, other, step), strict=True):
            assert mine.isfinite().all()
            # no schedule of their own
            if name in ("fixed", "normalized", "agc", "autoclip", "zclip"):
                assert torch.equal(mine, theirs)
    assert clipper.state_dict()["skips"] == 4
    assert clipper.metrics()[f"{name}_skips"] == 4


@every
def test_a_gradient_that_is_not_finite_can_stop_the_run(name: str) -> None:
    named = net()
    clipper = KINDS[name](named, nonfinite="raise")
    for _, parameter in named:
        parameter.grad = torch.full_like(parameter, math.inf)
    with pytest.raises(FloatingPointError, match="norm is inf"):
        clipper.step()


@every
def test_zero_and_missing_and_late_gradients(name: str) -> None:
    named = net()
    clipper = KINDS[name](named)
    clipper.step()  # none has a gradient
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    clipper.step()
    assert all(not p.grad.any() for _, p in named)  # type: ignore[union-attr]
    for step in range(25):
        for index, ((_, parameter), gradient) in enumerate(
            zip(named, gradients(step), strict=True)
        ):
            parameter.grad = (
                None if (index == 2 and step < 12) or (index == 1 and step % 3) else gradient
            )
        clipper.step()
        live = [p.grad for _, p in named if p.grad is not None]
        assert all(g.isfinite().all() for g in live)
        assert all(g.any() for g in live), "a gradient was held at 0"


EQUIVARIANT = ["autoclip", "zclip", "adagc", "spam"]


@pytest.mark.parametrize("name", EQUIVARIANT)
@given(power=st.integers(-20, 20))
@settings(deadline=None, max_examples=8)
def test_clipping_scales_with_the_gradients(name: str, power: int) -> None:
    more = {"zclip": {"max_grad_norm": None}, "adagc": {"lambda_abs": None}}.get(name, {})
    scale = 2.0**power
    named, other = net(), net()
    plain, scaled = KINDS[name](named, **more), KINDS[name](other, **more)
    for step in range(25):
        for mine, theirs in zip(
            take(plain, named, step), take(scaled, other, step, scale), strict=True
        ):
            torch.testing.assert_close(theirs / scale, mine, rtol=1e-5, atol=0)


@given(power=st.integers(-10, 10))
@settings(deadline=None, max_examples=8)
def test_normalising_clippers_forget_the_scale(power: int) -> None:
    for make in (Normalized, StableSPAM):
        named, other = net(), net()
        plain, scaled = make(named), make(other)
        for step in range(12):
            for mine, theirs in zip(
                take(plain, named, step), take(scaled, other, step, 2.0**power), strict=True
            ):
                torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-7)


@every
def test_what_is_clipped_is_reported(name: str) -> None:
    named = net()
    clipper = KINDS[name](named)
    for step in range(30):
        before = torch.cat([g.reshape(-1) for g in gradients(step)])
        after = torch.cat([g.reshape(-1) for g in take(clipper, named, step)])
        report = clipper._report
        assert report.norm == pytest.approx(float(before.norm()), rel=1e-5)
        if report.clipped == 0 and name not in ("normalized", "stable-spam"):
            assert torch.equal(before, after)
    assert all(math.isfinite(v) for v in clipper.metrics().values())
    assert clipper.describe()["name"] == name


@every
def test_order_of_the_parameters_does_not_matter(name: str) -> None:
    """State belongs to names: saved in one order, loaded in another."""
    named = net()
    clipper = KINDS[name](named)
    for step in range(12):
        take(clipper, named, step)
    turned = net()
    other = KINDS[name](turned[::-1])
    other.load_state_dict(copy.deepcopy(clipper.state_dict()))
    for step in range(12, 20):
        take(other, turned, step)
        for mine, (_, p) in zip(take(clipper, named, step), turned, strict=True):
            torch.testing.assert_close(p.grad, mine, rtol=1e-6, atol=0)


def test_state_of_another_kind_or_model_is_refused() -> None:
    named = net()
    with pytest.raises(InputError, match="of its own kind"):
        ZClip(named).load_state_dict(AutoClip(named).state_dict())
    kept = AdaGC(named).state_dict()
    with pytest.raises(InputError, match=r"layer\.0.*does not train"):
        AdaGC([("other", named[0][1])]).load_state_dict(kept)
    with pytest.raises(InputError, match="none trainable"):
        ZClip([nn.Parameter(torch.zeros(2), requires_grad=False)])
    with pytest.raises(InputError, match="has no parameters"):
        ZClip().step()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "zclap",
            "choose one of adagc, agc, autoclip, fixed, normalized, spam, stable-spam, zclip",
        ),
        ("zclip:alpha=1", "alpha = 1"),
        ("zclip:alpha=x", "'x' is not a number"),
        ("zclip:beta=1", "has no setting 'beta': it knows alpha"),
        ("zclip:input=raw", "choose one of auto, noised, denoised, ratio"),
        ("zclip:mode=best", "choose one of zscore, percentile"),
        ("zclip:max_grad_norm=-1", "a positive number, none or auto"),
        ("adagc:lambda_rel=0.5", "lambda_rel = 0.5"),
        ("autoclip:percentile=101", "percentile = 101"),
        ("autoclip:scope=layer", "choose one of global, tensor"),
        ("spam:threshold=0", "threshold"),
        ("agc:exclude=(", "no regular expression"),
        ("stable-spam:gamma1=1", "gamma1 = 1"),
        ("fixed:nonfinite=hope", "choose one of skip, raise, pass"),
        ("fixed+none", "none stands alone"),
    ],
)
def test_bad_settings_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$") as refused:
        make_postprocessors(text)
    assert message in str(refused.value)


def test_several_are_made_in_order() -> None:
    made = make_postprocessors(
        "adagc:lambda_abs=none+zclip:z_thresh=3,max_grad_norm=auto,skip_update_on_spike=true"
    )
    assert [type(c) for c in made] == [AdaGC, ZClip]
    assert made[0].lambda_abs is None  # type: ignore[attr-defined]
    assert made[1].describe() == {**ZClip(z_thresh=3.0, skip_update_on_spike=True).describe()}
    assert make_postprocessors("none") == []


# --- each by itself -------------------------------------------------------------------------------


def test_the_fixed_threshold_is_torchs() -> None:
    named, other = net(), net()
    clipper = FixedNorm(named, max_grad_norm=2.5, match_published=True)
    for step in range(20):
        mine = take(clipper, named, step)
        for (_, parameter), gradient in zip(other, gradients(step), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_([p for _, p in other], 2.5)
        for own, (_, p) in zip(mine, other, strict=True):
            torch.testing.assert_close(own, p.grad, rtol=1e-6, atol=0)


def test_agc_clips_rows_relative_to_their_weights() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]]))
    bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.003, 0.004]])
    bias.grad = torch.tensor([30.0, 40.0])
    head = nn.Parameter(torch.ones(2))
    head.grad = torch.tensor([30.0, 40.0])
    AGC([("weight", weight), ("bias", bias), ("head", head)], exclude="head").step()
    expected = torch.tensor([[0.03, 0.04], [6e-6, 8e-6], [0.003, 0.004]])
    torch.testing.assert_close(weight.grad, expected)
    torch.testing.assert_close(bias.grad, torch.tensor([0.03, 0.04]))
    torch.testing.assert_close(head.grad, torch.tensor([30.0, 40.0]))


def test_spam_cuts_single_elements_and_spares_those_never_seen() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    clipper, held = (
        SpikeAware([parameter], skip_steps=1),
        SpikeAware([parameter], skip_steps=1, match_published=True),
    )
    for _ in range(2):
        parameter.grad = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
        clipper.step()
        parameter.grad = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
        held.step()
    parameter.grad = torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64)
    clipper.step()
    expected = [1.0, math.sqrt(5000 * 0.001999), 1.0]
    torch.testing.assert_close(parameter.grad, torch.tensor(expected, dtype=torch.float64))
    parameter.grad = torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64)
    held.step()
    torch.testing.assert_close(
        parameter.grad, torch.tensor([*expected[:2], 0.0], dtype=torch.float64)
    )


def test_adagc_leaves_the_other_tensors_alone() -> None:
    """Where the global norm would shrink everything."""
    named = [(str(i), nn.Parameter(torch.zeros(50))) for i in range(4)]
    adagc, zclip = (
        AdaGC(named, warmup_steps=3, lambda_abs=None),
        ZClip(named, warmup_steps=5, max_grad_norm=None),
    )
    draw = torch.Generator().manual_seed(0)
    for step in range(40):
        plain = [torch.randn(50, generator=draw) for _ in named]
        if step == 39:
            plain[1] *= 50
        results = []
        for clipper in (adagc, zclip):
            for (_, parameter), gradient in zip(named, plain, strict=True):
                parameter.grad = gradient.clone()
            usual = adagc.state_dict()["gamma"]["1"]
            clipper.step()
            results.append(
                [float(p.grad.norm() / g.norm()) for (_, p), g in zip(named, plain, strict=True)]
            )  # type: ignore[union-attr]
            if step == 39 and clipper is adagc:
                assert float(named[1][1].grad.norm()) <= 1.0401 * float(usual)  # type: ignore[union-attr]
    by_tensor, as_a_whole = results
    assert by_tensor[1] < 0.03
    assert min(by_tensor[0], by_tensor[2], by_tensor[3]) > 0.7
    assert max(as_a_whole) < 0.2


def test_the_pre_step_hook_clips_once_and_after_a_closure() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    clipper = FixedNorm([parameter], max_grad_norm=1.0)
    handle = clipper.attach(optimizer)
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, -0.8]))

    def closure() -> float:
        parameter.grad = torch.tensor([0.0, -50.0])
        return 7.0

    assert optimizer.step(closure) == 7.0
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, 0.2]))
    assert optimizer.step(closure=closure) == 7.0
    assert clipper.state_dict()["steps"] == 3
    handle.remove()
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert clipper.state_dict()["steps"] == 3


def test_norms_of_long_tensors_are_right() -> None:
    from dpclip.postprocess.norms import largest, squared_norms

    draw = torch.Generator().manual_seed(0)
    long = torch.randn(5_000_001, generator=draw)
    tensors = [
        long,
        long[:70_001],
        long[:3].bfloat16(),
        torch.zeros(0),
        torch.tensor(-7.0),
        long.double()[:9],
        long[:60].view(6, 10).T,
    ]
    expected = torch.stack([t.double().square().sum() for t in tensors])
    torch.testing.assert_close(squared_norms(tensors), expected, rtol=1e-5, atol=0)
    peaks = torch.stack(
        [
            t.double().abs().max() if t.numel() else torch.zeros((), dtype=torch.float64)
            for t in tensors
        ]
    )
    assert torch.equal(largest(tensors), peaks)
