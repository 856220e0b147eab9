"""The clipping optimizers against recursions written out in float64, and what a torch optimizer has
to stand.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dpclip.errors import InputError
from dpclip.optim import (
    ClipAdaGrad,
    ClipAdaGradNorm,
    ClipAdam,
    ClipAdamNorm,
    ClippedSGD,
    NormalizedSGD,
)

SHAPES = ((3, 2), (4,), (1,))
LR, LIMIT, B0, ETA, BETA1, BETA2 = 0.3, 1.5, 0.7, 0.4, 0.8, 0.95
Make = Callable[[Any], Optimizer]
ALL: dict[str, Make] = {
    "clipped": lambda p: ClippedSGD(p, LR, LIMIT, momentum=0.9, weight_decay=0.01),
    "normalized": lambda p: NormalizedSGD(p, LR, 0.1, momentum=0.9, weight_decay=0.01),
    "adagrad-norm": lambda p: ClipAdaGradNorm(p, LR, LIMIT, B0, ETA, BETA1),
    "adagrad-norm-delayed": lambda p: ClipAdaGradNorm(p, LR, LIMIT, B0, ETA, delayed=True),
    "adagrad-norm-tensor": lambda p: ClipAdaGradNorm(p, LR, LIMIT, B0, ETA, clip="tensor"),
    "adam-norm": lambda p: ClipAdamNorm(p, LR, (BETA1, BETA2), LIMIT, B0),
    "adam-norm-delayed-tensor": lambda p: ClipAdamNorm(
        p, LR, (BETA1, BETA2), LIMIT, B0, delayed=True, clip="tensor"
    ),
    "adagrad": lambda p: ClipAdaGrad(p, LR, LIMIT, B0, ETA, BETA1),
    "adagrad-delayed-tensor": lambda p: ClipAdaGrad(
        p, LR, LIMIT, B0, ETA, delayed=True, clip="tensor"
    ),
    "adam": lambda p: ClipAdam(p, LR, (BETA1, BETA2), LIMIT, B0),
    "adam-delayed": lambda p: ClipAdam(p, LR, (BETA1, BETA2), LIMIT, B0, delayed=True),
}
every_optimizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def parameters(dtype: torch.dtype = torch.float64, seed: int = 1) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in SHAPES
    ]


def gradients(steps: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Of norms on both sides of LIMIT, for each step."""
    generator = torch.Generator().manual_seed(2)
    sizes = [0.1 * 3.0**k for k in range(5)]
    return [
        [
            (sizes[t % 5] * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype)
            for s in SHAPES
        ]
        for t in range(steps)
    ]


def step(optimizer: Optimizer, held: list[nn.Parameter], found: list[Tensor]) -> None:
    for p, g in zip(held, found, strict=True):
        p.grad = g.clone()
    optimizer.step()


def run(make: Make, steps: int = 12, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    held = parameters(dtype)
    optimizer = make(held)
    for found in gradients(steps, dtype):
        step(optimizer, held, found)
    return [p.detach() for p in held]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- against the formulas, on one vector or on one tensor after the other -------------------------


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def clip(g: Tensor) -> Tensor:
    return g * min(1.0, LIMIT / float(g.norm()))


def descent(
    x: Tensor, path: list[Tensor], direction: Callable[[Tensor], Tensor], momentum: float
) -> Tensor:
    buffer = torch.zeros_like(x)
    for g in path:
        buffer = momentum * buffer + direction(g) + 0.01 * x
        x = x - LR * buffer
    return x


def adaptive(
    x: Tensor, path: list[Tensor], *, adam: bool, scalar: bool, beta1: float, delayed: bool
) -> Tensor:
    """Section by section what Chezhegov et al. write."""
    b = torch.tensor(B0, dtype=torch.float64) if scalar else torch.full_like(x, B0)
    m = torch.zeros_like(x)
    for g in path:
        c = clip(g)
        square = c.square().sum() if scalar else c.square()
        then = b
        b = (BETA2 * b**2 + (1 - BETA2) * square).sqrt() if adam else (b**2 + ETA * square).sqrt()
        m = beta1 * m + (1 - beta1) * c
        x = x - LR * m / (then if delayed else b)
    return x


def expected(law: Callable[[Tensor, list[Tensor]], Tensor], *, per_tensor: bool) -> Tensor:
    start, path = parameters(), gradients(12)
    if not per_tensor:
        return law(flat(start), [flat(found) for found in path])
    return torch.cat(
        [law(p.detach(), [found[i] for found in path]).reshape(-1) for i, p in enumerate(start)]
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clipped_and_normalized_descent_follow_their_formulas(momentum: float) -> None:
    laws: list[tuple[Make, Callable[[Tensor], Tensor]]] = [
        (lambda p: ClippedSGD(p, LR, LIMIT, momentum, 0.01), clip),
        (lambda p: NormalizedSGD(p, LR, 0.1, momentum, 0.01), lambda g: g / (g.norm() + 0.1)),
    ]
    for make, direction in laws:
        reference = expected(
            lambda x, path, d=direction: descent(x, path, d, momentum), per_tensor=False
        )
        torch.testing.assert_close(flat(run(make)), reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("beta1", [0.0, BETA1])
@pytest.mark.parametrize("clipping", ["global", "tensor"])
@pytest.mark.parametrize("name", ["ClipAdaGradNorm", "ClipAdamNorm", "ClipAdaGrad", "ClipAdam"])
def test_adaptive_optimizers_follow_their_formulas(
    name: str, clipping: str, beta1: float, delayed: bool
) -> None:
    kind = {c.__name__: c for c in (ClipAdaGradNorm, ClipAdamNorm, ClipAdaGrad, ClipAdam)}[name]
    adam, scalar = "Adam" in name, "Norm" in name
    own: dict[str, Any] = {"betas": (beta1, BETA2)} if adam else {"eta": ETA, "momentum": beta1}
    found = run(lambda p: kind(p, LR, max_norm=LIMIT, b0=B0, delayed=delayed, clip=clipping, **own))
    reference = expected(
        lambda x, path: adaptive(x, path, adam=adam, scalar=scalar, beta1=beta1, delayed=delayed),
        per_tensor=clipping == "tensor",
    )
    torch.testing.assert_close(flat(found), reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ClipAdaGradNorm", "ClipAdaGrad"])
def test_reweighted_is_eta_of_the_squared_rate_that_a_scheduler_sets(name: str) -> None:
    kind = {c.__name__: c for c in (ClipAdaGradNorm, ClipAdaGrad)}[name]
    ours, theirs = parameters(), parameters()
    reweighted, plain = kind(ours, LR, b0=B0, eta="reweighted"), kind(theirs, LR, b0=B0, eta=LR**2)
    for t, found in enumerate(gradients(6)):
        rate = LR / (1 + t)
        reweighted.param_groups[0]["lr"] = rate
        plain.param_groups[0].update(lr=rate, eta=rate**2)
        step(reweighted, ours, found)
        step(plain, theirs, found)
    assert equal(ours, theirs)


def test_one_coordinate_makes_the_scalar_and_the_coordinate_version_agree() -> None:
    for first, second in ((ClipAdaGradNorm, ClipAdaGrad), (ClipAdamNorm, ClipAdam)):
        ends = []
        for kind in (first, second):
            x = nn.Parameter(torch.ones(1, dtype=torch.float64))
            optimizer = kind([x], 0.3, b0=0.5, delayed=True)
            for g in (0.2, 5.0, -0.1, 0.7):
                step(optimizer, [x], [torch.tensor([g], dtype=torch.float64)])
            ends.append(x.detach())
        torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


# --- special cases --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.1), (0.9, 0.1)])
@pytest.mark.parametrize("limit", [math.inf, None])
def test_unclipped_it_is_torch_sgd_bit_for_bit(
    dtype: torch.dtype, momentum: float, decay: float, limit: float | None
) -> None:
    ours = run(lambda p: ClippedSGD(p, LR, limit, momentum, decay), dtype=dtype)
    theirs = run(
        lambda p: SGD(p, LR, momentum=momentum, weight_decay=decay, foreach=False), dtype=dtype
    )
    assert equal(ours, theirs)


def test_clipped_it_is_torch_sgd_after_clip_grad_norm() -> None:
    held = parameters()
    optimizer = SGD(held, LR, momentum=0.9, weight_decay=0.1)
    for found in gradients(12):
        for p, g in zip(held, found, strict=True):
            p.grad = g.clone()
        nn.utils.clip_grad_norm_(held, LIMIT)
        optimizer.step()
    ours = run(lambda p: ClippedSGD(p, LR, LIMIT, momentum=0.9, weight_decay=0.1))
    # torch adds 1e-6 to the norm
    torch.testing.assert_close(flat(ours), flat(held), rtol=1e-5, atol=1e-5)


def test_the_norm_runs_over_all_groups_and_settings_are_each_groups_own() -> None:
    held = parameters()
    optimizer = ClippedSGD(
        [{"params": held[:1], "lr": 0.1}, {"params": held[1:], "max_norm": 2.0}], lr=0.5
    )
    start, found = [p.detach().clone() for p in held], gradients(5)[4]
    norm = float(flat(found).norm())
    step(optimizer, held, found)
    assert norm > 2
    for p, x, g, rate in zip(held, start, found, (0.1, 1.0, 1.0), strict=True):
        torch.testing.assert_close(p.detach(), x - rate * g / norm)  # 0.1 * 1.0, then 0.5 * 2.0


def test_one_scalar_follows_the_gradients_of_all_groups() -> None:
    held = parameters()
    split = ClipAdaGradNorm([{"params": held[:1]}, {"params": held[1:]}], LR, LIMIT, B0, ETA, BETA1)
    for found in gradients(12):
        step(split, held, found)
    assert equal([p.detach() for p in held], run(ALL["adagrad-norm"]))
    for p in held[1:]:
        p.grad = None
    held[0].grad = torch.ones(3, 2, dtype=torch.float64)
    split.step()
    assert split.param_groups[0]["b"] == split.param_groups[1]["b"]


def test_gradients_that_never_change_show_the_delay() -> None:
    """The first delayed step divides by b0 itself, whatever the gradient, and moves along this
    step's gradient.
    """
    for kind in (ClipAdaGradNorm, ClipAdaGrad):
        x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = kind([x], lr=0.5, max_norm=None, b0=2.0, delayed=True)
        step(optimizer, [x], [torch.tensor([3.0, 4.0], dtype=torch.float64)])
        torch.testing.assert_close(x.detach(), torch.tensor([-0.75, -1.0], dtype=torch.float64))


def test_the_delay_survives_gradients_that_are_zeroed_in_place() -> None:
    ends = []
    for to_none in (True, False):
        x = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = ClipAdamNorm([x], 0.1, b0=1.0, delayed=True)
        for scale in (1.0, 3.0, 0.2):
            optimizer.zero_grad(set_to_none=to_none)
            (scale * x.square().sum()).backward()
            optimizer.step()
        ends.append(x.detach())
    assert torch.equal(*ends)


def test_the_momentum_is_no_alias_of_a_gradient_that_is_zeroed_in_place() -> None:
    x = nn.Parameter(torch.zeros(2))
    x.grad = torch.tensor([0.1, 0.2])
    optimizer = ClippedSGD([x], 1.0, momentum=0.5)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([-0.15, -0.3]))


# --- what an optimizer has to stand ---------------------------------------------------------------


@every_optimizer
def test_gradients_are_read_only(make: Make) -> None:
    held = parameters()
    optimizer = make(held)
    for found in gradients(5):
        step(optimizer, held, found)
        assert equal([p.grad for p in held], found)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_run_goes_on_bit_for_bit(make: Make, dtype: torch.dtype) -> None:
    whole = run(make, 12, dtype)
    held, path = parameters(dtype), gradients(12, dtype)
    first = make(held)
    for found in path[:6]:
        step(first, held, found)
    stored = io.BytesIO()
    torch.save({"x": held, "optimizer": first.state_dict()}, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    second = make(loaded["x"])
    second.load_state_dict(loaded["optimizer"])
    for found in path[6:]:
        step(second, loaded["x"], found)
    assert equal(whole, [p.detach() for p in loaded["x"]])


@every_optimizer
def test_loaded_state_is_not_shared_and_copies_keep_every_setting(make: Make) -> None:
    held = parameters()
    first = make(held)
    step(first, held, gradients(1)[0])
    other = parameters()
    second = make(other)
    second.load_state_dict(first.state_dict())
    saved = copy.deepcopy(first.state_dict())
    step(second, other, gradients(2)[1])
    now = first.state_dict()
    assert now["param_groups"] == saved["param_groups"]
    for index, state in saved["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(now["state"][index][key]), torch.as_tensor(value))
    twin_x, twin = copy.deepcopy((held, first))
    for found in gradients(3):
        step(first, held, found)
        step(twin, twin_x, found)
    assert equal([p.detach() for p in held], [p.detach() for p in twin_x])


@every_optimizer
def test_the_closure_runs_with_autograd_on_and_its_loss_comes_back(make: Make) -> None:
    held = parameters()
    optimizer = make(held)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((p.square().sum() for p in held), torch.zeros((), dtype=torch.float64))
        loss.backward()
        return loss

    with torch.no_grad():
        before = float(sum(p.square().sum() for p in held))
        assert optimizer.step(closure).item() == before
        assert float(sum(p.square().sum() for p in held)) != before


@every_optimizer
def test_parameters_without_gradients_are_left_alone_and_may_come_late(make: Make) -> None:
    held = parameters()
    start = [p.detach().clone() for p in held]
    optimizer = make(held)
    optimizer.step()  # no gradient at all
    assert not optimizer.state
    for t, found in enumerate(gradients(6)):
        for p, g in zip(held, found, strict=True):
            p.grad = g.clone()
        if t < 3:
            held[1].grad = None
        optimizer.step()
        assert torch.equal(held[1], start[1]) == (t < 3)
        assert not torch.equal(held[0], start[0])
    assert all(p.isfinite().all() for p in held)


@every_optimizer
def test_zero_gradients_move_nothing_but_by_decay(make: Make) -> None:
    held = parameters()
    optimizer = make(held)
    start = [p.detach().clone() for p in held]
    step(optimizer, held, [torch.zeros_like(p) for p in held])
    decay = optimizer.param_groups[0].get("weight_decay", 0.0)
    for p, x in zip(held, start, strict=True):
        torch.testing.assert_close(p.detach(), x - LR * decay * x, rtol=1e-14, atol=0)


def test_normalizing_a_gradient_without_direction_moves_nothing() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = NormalizedSGD([x], 0.1)
    step(optimizer, [x], [torch.zeros(2)])
    assert torch.equal(x, torch.ones(2))
    step(optimizer, [x], [torch.tensor([1e-42, 0.0])])  # 1 / norm overflows float32
    assert x.isfinite().all()


@pytest.mark.parametrize("kind", [ClipAdam, ClipAdamNorm])
def test_a_second_moment_that_has_decayed_to_nothing_does_not_divide_by_zero(
    kind: type[Optimizer],
) -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = kind([x], 1e-3, betas=(0.9, 0.0))
    for value in (0.0, 0.0, 1e-25, 1e-3):
        step(optimizer, [x], [torch.full((2,), value)])
        assert x.isfinite().all()
        assert (x - 1).abs().max().item() <= 0.01


@every_optimizer
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite(make: Make, poison: float) -> None:
    held = parameters()
    optimizer = make(held)
    step(optimizer, held, gradients(1)[0])
    x, state = [p.detach().clone() for p in held], copy.deepcopy(optimizer.state_dict())
    bad = [torch.full_like(p, 0.5) for p in held]
    bad[1][2] = poison
    step(optimizer, held, bad)
    optimizer.param_groups[0]["nonfinite"] = "raise"
    with pytest.raises(FloatingPointError, match="not finite"):
        step(optimizer, held, bad)
    optimizer.param_groups[0]["nonfinite"] = "skip"
    assert equal([p.detach() for p in held], x)
    assert str(optimizer.state_dict()) == str(state)
    optimizer.param_groups[0]["nonfinite"] = "pass"
    step(optimizer, held, bad)
    assert not held[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_measured_in_float32(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16; a sum of 70000 ones stops at 256 in bfloat16."""
    x = nn.Parameter(torch.zeros(70_000, dtype=dtype))
    optimizer = ClipAdaGradNorm([x], lr=1.0, max_norm=None, b0=1e-3)
    step(optimizer, [x], [torch.full_like(x, 300.0)])
    norm = 300 * math.sqrt(70_000)
    assert optimizer.param_groups[0]["b"] == pytest.approx(norm, rel=1e-6)
    torch.testing.assert_close(x.float(), torch.full((70_000,), -300 / norm), rtol=0.01, atol=0)


def test_the_squares_of_half_precision_coordinates_add_up() -> None:
    """In bfloat16 256 + 1 is 256: the accumulator would stand still."""
    x = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = ClipAdaGrad([x], lr=0.1, max_norm=None, b0=16.0)
    for _ in range(20):
        step(optimizer, [x], [torch.ones_like(x)])
    again = ClipAdaGrad([x], lr=0.1, max_norm=None, b0=16.0)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[x]["b_squared"].dtype == torch.float32
    assert again.state[x]["b_squared"].tolist() == [276.0] * 3


def test_a_large_but_finite_float32_gradient_is_clipped_not_skipped() -> None:
    x = nn.Parameter(torch.zeros(2))
    step(ClippedSGD([x], lr=1.0), [x], [torch.full((2,), 3e38)])
    torch.testing.assert_close(x.detach(), torch.full((2,), -(0.5**0.5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: ClippedSGD(p, lr=-1.0), "lr is -1.0"),
        (lambda p: ClippedSGD(p, lr=math.nan), "lr is nan"),
        (lambda p: ClippedSGD(p, 0.1, max_norm=0.0), "max_norm is 0.0"),
        (lambda p: ClippedSGD(p, 0.1, max_norm=math.nan), "max_norm is nan"),
        (lambda p: ClippedSGD(p, 0.1, momentum=1.0), "momentum is 1.0"),
        (lambda p: ClippedSGD(p, 0.1, weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda p: NormalizedSGD(p, 0.1, beta=-1.0), "beta is -1.0"),
        (lambda p: NormalizedSGD(p, 0.1, nonfinite="ignore"), "nonfinite is 'ignore'"),
        (lambda p: ClipAdaGradNorm(p, 0.1, b0=0.0), "b0 is 0.0"),
        (lambda p: ClipAdaGradNorm(p, 0.1, eta="weighted"), "eta is 'weighted'"),
        (lambda p: ClipAdaGradNorm(p, 0.1, eta=0.0), "eta is 0.0"),
        (lambda p: ClipAdaGrad(p, 0.1, clip="layer"), "clip is 'layer'"),
        (lambda p: ClipAdam(p, 0.1, betas=(0.9, 1.0)), "beta2 is 1.0"),
        (lambda p: ClipAdamNorm([{"params": p, "max_norm": -1.0}], 0.1), "max_norm is -1.0"),
    ],
)
def test_settings_that_cannot_be_used_say_so(make: Make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(parameters())


def test_a_refused_group_is_not_added() -> None:
    optimizer = ClippedSGD(parameters(), 0.1)
    with pytest.raises(InputError):
        optimizer.add_param_group({"params": parameters(), "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        ClippedSGD(table.parameters(), 0.1).step()
