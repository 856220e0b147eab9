"""SPAM and Stable-SPAM against numbers computed with the published code, and what is mended."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpclip.errors import InputError
from dpclip.optim import SPAM, StableSPAM

KINDS = {
    "spam": lambda p, **more: SPAM(
        p, **{"lr": 0.1, "reset_interval": 6, "rewarmup_steps": 3, "skip_steps": 2, **more}
    ),
    "stable": lambda p, **more: StableSPAM(p, **{"lr": 0.1, "reset_interval": 5, **more}),
}
every = pytest.mark.parametrize("kind", list(KINDS))


def pair() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))


SPAM_ROWS = [
    (0.1, 0.1, 0.001, 0.001, 0.900003, -1.099997),
    (0.19, 0.19, 0.001999, 0.001999, 0.800005, -1.199995),
    (0.271, 0.4871487, 0.002997, 0.011992, 0.700007, -1.289859),
    (0.3439, 0.53843383, 0.003994, 0.01298001, 0.600009, -1.376707),
    (0.40951, 0.58459045, 0.00499001, 0.01396703, 0.500010, -1.462033),
    (0.1, 0.1, 0.001, 0.001, 0.499488, -1.462556),
    (0.19, 0.19, 0.001999, 0.001999, 0.488942, -1.473102),
    (0.271, 0.271, 0.002997, 0.002997, 0.449752, -1.512292),
    (0.3439, 0.3439, 0.003994, 0.003994, 0.365649, -1.596395),
    (0.40951, 0.40951, 0.00499001, 0.00499001, 0.276844, -1.685199),
]


@pytest.mark.parametrize("match_published", [False, True])
def test_spam(match_published: bool) -> None:
    parameter = pair()
    optimizer = KINDS["spam"]([parameter], match_published=match_published)
    for t, (m0, m1, v0, v1, p0, p1) in enumerate(SPAM_ROWS, start=1):
        parameter.grad = torch.tensor([1.0, 100.0 if t == 3 else 1.0], dtype=torch.float64)
        optimizer.step()
        state = optimizer.state[parameter]
        assert state["exp_avg"].tolist() == pytest.approx([m0, m1], rel=1e-6)
        assert state["exp_avg_sq"].tolist() == pytest.approx([v0, v1], abs=6e-7)
        assert parameter.tolist() == pytest.approx([p0, p1], abs=6e-7)


STABLE = [
    (0.9, -1.1),
    (0.8, -1.2),
    (0.72137009, -1.30027495),
    (0.63605776, -1.39933794),
    (0.47315211, -1.57912906),
    (0.39873843, -1.65354274),
    (0.31321958, -1.73906158),
]


def stable_run(match_published: bool, steps: int = 7) -> list[tuple[list[float], dict[str, Any]]]:
    parameter = pair()
    optimizer = KINDS["stable"]([parameter], match_published=match_published)
    found = []
    for t in range(1, steps + 1):
        parameter.grad = torch.tensor([0.3, 40.0] if t == 3 else [3.0, 4.0], dtype=torch.float64)
        optimizer.step()
        found.append((parameter.tolist(), copy.deepcopy(optimizer.state[parameter])))
    return found


def test_stable_spam_as_published() -> None:
    found = stable_run(match_published=True)
    for (p, _), expected in zip(found, STABLE, strict=True):
        assert p == pytest.approx(expected, abs=1e-7)
    assert found[4][1]["exp_avg"].tolist() == [0.0, 0.0], "the reset step is not remembered"


def test_stable_spam_as_mended() -> None:
    found, published = stable_run(match_published=False), stable_run(match_published=True)
    for index in range(4):
        assert found[index][0] == pytest.approx(published[index][0], rel=1e-12)
    assert found[4][1]["exp_avg"].abs().min() > 0.01, "the reset step is remembered"
    first = [abs(a - b) for a, b in zip(found[4][0], found[3][0], strict=True)]
    assert first == pytest.approx([0.1, 0.1], rel=1e-6), "and is as long as a first step"
    largest = [
        state["usual"][0].item() / (1 - 0.999**t) for t, (_, state) in enumerate(found, start=1)
    ]
    assert largest[5:] == pytest.approx([9.9970, 9.1377], rel=1e-5), (
        "the usual largest element is not inflated"
    )


def test_a_constant_gradient_after_the_published_reset() -> None:
    """Old moments with the corrections of a first step: too short, the more so the older
    they are.
    """
    moved = {}
    for match_published in (True, False):
        parameter = pair()
        optimizer = StableSPAM(
            [parameter], lr=1.0, reset_interval=200, match_published=match_published
        )
        before = parameter.detach().clone()
        for _ in range(200):
            before = parameter.detach().clone()
            parameter.grad = torch.ones(2, dtype=torch.float64)
            optimizer.step()
        moved[match_published] = float((parameter.detach() - before).abs()[0])
    assert moved[False] == pytest.approx(1.0, rel=1e-3)
    assert moved[True] == pytest.approx(10 / math.sqrt((1 - 0.999**200) / 0.001), rel=1e-6)


def test_an_element_that_never_had_a_gradient_is_not_held_down() -> None:
    """An embedding's rare row; the published code keeps it at 0 until the next reset."""
    ends = {}
    for match_published in (True, False):
        parameter = pair()
        optimizer = KINDS["spam"]([parameter], match_published=match_published, reset_interval=0)
        for t in range(8):
            parameter.grad = torch.tensor([1.0, float(t >= 4)], dtype=torch.float64)
            optimizer.step()
        ends[match_published] = float(parameter[1].detach())
    assert ends[True] == -1.0
    assert ends[False] < -1.1


# --- both -----------------------------------------------------------------------------------------


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in ((3, 4), (5,), (1,))
    ]


def train(
    optimizer: torch.optim.Optimizer, held: list[nn.Parameter], first: int, last: int
) -> list[Tensor]:
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        for index, parameter in enumerate(held):
            gradient = torch.randn(parameter.shape, generator=draw) * (300 if step % 7 == 3 else 1)
            parameter.grad = None if index == 1 and step < 4 else gradient.to(parameter.dtype)
        optimizer.step()
    return [p.detach().clone() for p in held]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [2, 5, 6, 13])
def test_a_resumed_optimizer_goes_on_bit_for_bit(kind: str, dtype: torch.dtype, stop: int) -> None:
    import io

    held = parameters(dtype)
    optimizer = KINDS[kind](held)
    kept = train(optimizer, held, 0, stop)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    whole = train(optimizer, held, stop, 20)
    other = [nn.Parameter(p.clone()) for p in kept]
    resumed = KINDS[kind](other)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for mine, theirs in zip(train(resumed, other, stop, 20), whole, strict=True):
        assert torch.equal(mine, theirs)
    wide = {v.dtype for s in resumed.state.values() for v in s.values() if isinstance(v, Tensor)}
    assert wide <= {torch.float32, torch.float64}


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, bad: float) -> None:
    held, other = parameters(), parameters()
    optimizer, spared = KINDS[kind](held), KINDS[kind](other)
    train(optimizer, held, 0, 8)
    train(spared, other, 0, 8)
    for parameter in held:
        parameter.grad = torch.full_like(parameter, bad)
    optimizer.step()
    for mine, theirs in zip(
        train(optimizer, held, 8, 15), train(spared, other, 8, 15), strict=True
    ):
        assert torch.equal(mine, theirs)
    strict = KINDS[kind](held, nonfinite="raise")
    held[0].grad = torch.full_like(held[0], bad)
    with pytest.raises(FloatingPointError):
        strict.step()


def test_spam_leaves_gradients_as_they_are() -> None:
    held = parameters()
    optimizer = KINDS["spam"](held)
    train(optimizer, held, 0, 3)
    for parameter in held:
        parameter.grad = torch.full_like(parameter, 1e5)
    optimizer.step()
    assert all(bool((p.grad == 1e5).all()) for p in held)  # type: ignore[union-attr]


@every
def test_both_learn(kind: str) -> None:
    parameter = nn.Parameter(torch.tensor([5.0, -3.0]))
    optimizer = KINDS[kind]([parameter], lr=0.05)
    start = float(parameter.detach().square().sum())
    for _ in range(300):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert float(parameter.detach().square().sum()) < 0.02 * start


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SPAM(p, threshold=-1),
        lambda p: SPAM(p, reset_interval=-1),
        lambda p: SPAM(p, lr=-1.0),
        lambda p: StableSPAM(p, betas=(1.0, 0.9)),
        lambda p: StableSPAM(p, gamma1=1.0),
        lambda p: StableSPAM(p, reset_interval=0.5),
    ],
)
def test_bad_settings_are_refused(make: Any) -> None:
    with pytest.raises(InputError):
        make(parameters())
