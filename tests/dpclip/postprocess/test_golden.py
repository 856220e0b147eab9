"""Each clipper against numbers that were computed with the published code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dpclip.postprocess import AdaGC, AutoClip, GradientClipper, StableSPAM, ZClip

NEAR = 2e-6


class Bench:
    """Parameters with gradients of given norms, in the direction (0.6, 0.8)."""

    def __init__(self, kind: type[GradientClipper], tensors: int = 1, **settings: Any) -> None:
        self.parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(tensors)]
        self.clipper = kind([(f"p{i}", p) for i, p in enumerate(self.parameters)], **settings)

    def out(self, *norms: float) -> list[float]:
        """Norms after one step."""
        for parameter, norm in zip(self.parameters, norms, strict=True):
            parameter.grad = torch.tensor([0.6, 0.8]) * norm
        self.clipper.step()
        return [float(p.grad.double().norm()) for p in self.parameters]  # type: ignore[union-attr]


def near(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=NEAR, nan_ok=True)


NORMS = (1, 2, 3, 4, 10, 2, 1)


@pytest.mark.parametrize("match_published", [False, True])
@pytest.mark.parametrize(
    ("percentile", "expected"),
    [
        (10, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.0]),
        (50, [1.0, 1.5, 2.0, 2.5, 3.0, 2.0, 1.0]),
        (90, [1.0, 1.9, 2.8, 3.7, 7.6, 2.0, 1.0]),
    ],
)
def test_autoclip(percentile: float, expected: list[float], match_published: bool) -> None:
    bench = Bench(AutoClip, percentile=percentile, match_published=match_published)
    assert [bench.out(norm)[0] for norm in NORMS] == near(expected)


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize(
    ("percentile", "window", "expected"),
    [
        (50, 1000, [1.0, 1.0, 1.5, 2.0, 2.5, 2.0, 1.0]),
        (90, 1000, [1.0, 1.0, 1.9, 2.8, 3.7, 2.0, 1.0]),
        (50, 3, [1.0, 1.0, 1.5, 2.0, 3.0, 2.0, 1.0]),
    ],
)
def test_the_port_of_autoclip(
    percentile: float, window: int, expected: list[float], scope: str
) -> None:
    bench = Bench(
        AutoClip, percentile=percentile, window=window, include_current=False, scope=scope
    )
    assert [bench.out(norm)[0] for norm in NORMS] == near(expected)


def test_one_nan_spoils_the_published_autoclip_for_ever_and_ours_for_a_step() -> None:
    published = Bench(AutoClip, percentile=50, match_published=True, nonfinite="pass")
    assert [published.out(n)[0] for n in (1, 2, math.nan, 1, 1)] == near(
        [1.0, 1.5, math.nan, math.nan, math.nan]
    )
    ours = Bench(AutoClip, percentile=50)
    assert [ours.out(n)[0] for n in (1, 2, math.nan, 1, 1)] == near([1.0, 1.5, 0.0, 1.0, 1.0])


# --- ZClip ----------------------------------------------------------------------------------------

FIRST, THEN = (1.0, 1.2, 0.8, 1.0), (1.1, 5.0, 1.0, 1.3, 20.0, 0.5)
MEANS = (1.003000, 1.003923, 1.003806, 1.012691, 1.012894, 0.997507)
VARIANCES = (0.0196823, 0.0191185, 0.0185454, 0.0204654, 0.0198528, 0.0266826)


def zclip(**settings: Any) -> tuple[Bench, list[float], list[tuple[float, float]]]:
    bench = Bench(ZClip, **{"warmup_steps": 4, "max_grad_norm": None, **settings})
    found, statistics = [], []
    for norm in (*FIRST, *THEN):
        found += bench.out(norm)
        state = bench.clipper.state_dict()
        statistics.append((state["mean"], state["variance"]))
    return bench, found, statistics


@pytest.mark.parametrize("match_published", [False, True])
def test_zclip(match_published: bool) -> None:
    _, found, statistics = zclip(match_published=match_published)
    assert found == near([*FIRST, 1.1, 1.033777, 1.0, 1.3, 1.019428, 0.5])
    assert statistics[3] == pytest.approx((1.0, 0.02), rel=NEAR)
    for (mean, variance), m, v in zip(statistics[4:], MEANS, VARIANCES, strict=True):
        assert mean == pytest.approx(m, abs=1e-6)
        assert variance == pytest.approx(v, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "clips", "mean", "variance"),
    [
        ({"clip_option": "mean"}, (1.003000, 1.011823), 0.996468, 0.0266406),
        ({"mode": "percentile"}, (1.353734, 1.405444), 1.017237, 0.0342240),
        ({"skip_update_on_spike": True}, (1.033777, 1.018738), 0.996468, 0.0277748),
    ],
)
def test_variants_of_zclip(
    settings: dict[str, Any], clips: tuple[float, float], mean: float, variance: float
) -> None:
    _, found, statistics = zclip(**settings)
    assert [found[5], found[8]] == near(list(clips))
    assert statistics[-1] == (pytest.approx(mean, abs=1e-6), pytest.approx(variance, abs=1e-7))


def test_the_factor_of_zclip_is_for_the_whole_threshold() -> None:
    _, found, statistics = zclip(clip_factor=0.5)
    assert found[5] == pytest.approx(0.516888, rel=NEAR)
    assert statistics[5] == (pytest.approx(0.988417, abs=1e-6), pytest.approx(0.025762, abs=1e-6))


def test_the_fixed_threshold_of_zclip_is_not_seen_by_its_statistics() -> None:
    _, found, statistics = zclip(max_grad_norm=1.0)
    assert found == near([1.0, 1.0, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    for (mean, variance), m, v in zip(statistics[4:], MEANS, VARIANCES, strict=True):
        assert (mean, variance) == (pytest.approx(m, abs=1e-6), pytest.approx(v, abs=1e-7))


def test_the_lock_in_of_zclip_and_the_way_out() -> None:
    """A norm that rises tenfold for good is held down for good, unless there is patience."""
    draw = torch.Generator().manual_seed(0)

    def level(step: int) -> float:
        return (1.0 if step < 100 else 10.0) * (1 + 0.05 * float(torch.randn(1, generator=draw)))

    held = Bench(ZClip, max_grad_norm=None)
    last = [held.out(level(step))[0] for step in range(900)][-1]
    assert last == pytest.approx(1.0, abs=0.05)
    freed = Bench(ZClip, max_grad_norm=None, patience=20)
    outs = [freed.out(level(step))[0] for step in range(100 + 2 * 20)]
    assert outs[-1] > 8
    little = Bench(ZClip, max_grad_norm=None)
    outs = [
        little.out(1.0 if s < 100 and s % 2 else 1.1 if s < 100 else 1.2)[0] for s in range(300)
    ]
    assert outs[-1] == pytest.approx(1.2, rel=1e-3), "a small rise is followed"


# --- AdaGC ----------------------------------------------------------------------------------------

PAIRS = [(0.3, 0.4), (3, 4), (0.6, 0.8), (0.62, 0.1), (5, 0.41), (0.5, 0.5), (0.5, 40)]
ADAGC = {
    (1.04, 0.99): (
        [
            (0.3, 0.4),
            (0.6, 0.8),
            (0.6, 0.8),
            (0.312, 0.1),
            (0.312125, 0.41),
            (0.312249, 0.413014),
            (0.312374, 0.41318),
        ],
        [
            (0.3, 0.4),
            (0.3, 0.4),
            (0.3, 0.4),
            (0.30012, 0.397),
            (0.30024005, 0.39713),
            (0.30036014, 0.39728885),
            (0.30048029, 0.39744777),
        ],
    ),
    (1.05, 0.98): (
        [
            (0.3, 0.4),
            (0.6, 0.8),
            (0.6, 0.8),
            (0.315, 0.1),
            (0.315315, 0.41),
            (0.31563, 0.414035),
            (0.315945, 0.41445),
        ],
        [
            (0.3, 0.4),
            (0.3, 0.4),
            (0.3, 0.4),
            (0.3003, 0.394),
            (0.3006003, 0.39432),
            (0.3009009, 0.39471432),
            (0.3012018, 0.39510903),
        ],
    ),
}


@pytest.mark.parametrize("match_published", [False, True])
@pytest.mark.parametrize(("ratio", "beta"), list(ADAGC))
def test_adagc(ratio: float, beta: float, match_published: bool) -> None:
    bench = Bench(
        AdaGC, 2, lambda_rel=ratio, beta=beta, warmup_steps=3, match_published=match_published
    )
    for pair, out, gamma in zip(PAIRS, *ADAGC[ratio, beta], strict=True):
        assert bench.out(*pair) == pytest.approx(list(out), rel=4e-6 if match_published else 3e-6)
        kept = bench.clipper.state_dict()["gamma"]
        assert [float(kept["p0"]), float(kept["p1"])] == pytest.approx(list(gamma), rel=4e-6)


def test_a_zero_gradient_freezes_the_published_adagc_and_not_ours() -> None:
    steps = [(0.0, 0.4), (0.3, 0.4), (0.3, 0.4), (0.3, 0.4)]
    published = Bench(AdaGC, 2, warmup_steps=2, match_published=True)
    assert [published.out(*pair)[0] for pair in steps] == near([0.0, 0.3, 0.0, 0.0])
    ours = Bench(AdaGC, 2, warmup_steps=2)
    assert [ours.out(*pair)[0] for pair in steps] == near([0.0, 0.3, 0.3, 0.3])


# --- Stable-SPAM's transforms ---------------------------------------------------------------------

STABLE = [
    ((3, 4), 4, 5, 1.000000),
    ((3, 4), 4, 5, 1.000000),
    ((0.3, 40), 16.012008, 16.014818, 0.954486),
    ((3, 4), 13.004498, 5, 0.869541),
    ((3, 4), 11.199993, 5, 0.825624),
]


def test_stable_spam() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    clipper = StableSPAM([("p", parameter)])
    for step, (gradient, limit, norm, goal) in enumerate(STABLE, start=1):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        cut = parameter.grad.clamp(max=limit)
        clipper.step()
        assert parameter.grad.norm().item() == pytest.approx(goal, rel=1e-6)
        torch.testing.assert_close(parameter.grad, cut / norm * goal, rtol=1e-6, atol=0)
        assert float(clipper.state_dict()["largest"]["p"]) / (1 - 0.999**step) == pytest.approx(
            limit, rel=1e-7
        )


def raw(clipper: StableSPAM) -> Tensor:
    state = clipper.state_dict()
    return torch.stack([state[part]["p"] for part in ("largest", "mean", "square")])


def test_the_raw_means_of_stable_spam() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    clipper = StableSPAM([("p", parameter)])
    found = []
    for t in range(7):
        parameter.grad = torch.tensor((0.3, 40.0) if t == 2 else (3.0, 4.0), dtype=torch.float64)
        clipper.step()
        found.append(raw(clipper))
    largest = [0.004, 0.007996, 0.047988, 0.05194002, 0.05588808, 0.05983219, 0.06377236]
    mean = [1.5, 2.55, 6.58944544, 6.11261181, 5.77882827, 5.54517979, 5.38162585]
    square = [2.5, 4.75, 29.92244003, 29.43019603, 28.98717643, 28.58845878, 28.22961291]
    torch.testing.assert_close(
        torch.stack(found),
        torch.tensor([largest, mean, square], dtype=torch.float64).T,
        rtol=2e-7,
        atol=2e-9,
    )


def test_a_spike_after_a_long_quiet_hardly_passes() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    clipper = StableSPAM([("p", parameter)])
    for _ in range(200):
        parameter.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
        clipper.step()
    parameter.grad = torch.tensor([60.0, 80.0], dtype=torch.float64)
    clipper.step()
    assert parameter.grad.norm().item() == pytest.approx(1.0901, abs=1e-4)
    parameter.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
    clipper.step()
    assert parameter.grad.norm().item() == pytest.approx(1.0507, abs=1e-4)


@pytest.mark.parametrize("match_published", [False, True])
def test_the_cosine_of_stable_spam(match_published: bool) -> None:
    clipper = StableSPAM(total_steps=10, match_published=match_published)
    expected = [
        0.989873,
        0.960313,
        0.913715,
        0.853854,
        0.785579,
        0.714421,
        0.646146,
        0.586285,
        0.539687,
        0.510127,
        0.5,
    ]
    assert [clipper.cosine(t) for t in range(1, 12)] == pytest.approx(expected, abs=1e-6)
    assert clipper.cosine(22) == pytest.approx(1.0 if match_published else 0.5)
