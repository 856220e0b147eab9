"""The smoothness probe: right on losses whose Hessian is known, and without any trace in the run it
watches.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from dpclip.diagnosis.smoothness import SmoothnessProbe, SmoothnessRecord
from dpclip.errors import InputError
from dpclip.optim import ClippedSGD


def descend(
    probe: SmoothnessProbe,
    x: nn.Parameter,
    loss: Callable[[], Tensor],
    steps: int,
    lr: float = 0.01,
) -> None:
    optimizer = ClippedSGD([x], lr, max_norm=1.0)
    with probe.attached(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def test_a_quadratic_has_its_eigenvalue() -> None:
    x = nn.Parameter(torch.tensor([2.0, 0.0], dtype=torch.float64))
    curvature = torch.tensor([3.0, 50.0], dtype=torch.float64)

    def loss() -> Tensor:
        return (curvature * x.square()).sum() / 2

    probe = SmoothnessProbe(loss, every=2)
    descend(probe, x, loss, 5)
    assert [r.step for r in probe.records] == [0, 2, 4]
    assert [r.smoothness for r in probe.records] == pytest.approx([3.0] * 3, rel=1e-9)
    assert probe.records[0].gradient_norm == pytest.approx(6.0, rel=1e-12)
    fit = probe.fit()
    assert (fit.l0, fit.l1) == pytest.approx((3.0, 0.0), abs=1e-6)


def test_the_exponential_loss_has_smoothness_two_plus_gradient_norm_at_most() -> None:
    """f = 2 cosh: |f''| <= 2 + |f'|, and over a step from x down to y the quotient is (f'(x) -
    f'(z)) / (x - z).
    """
    x = nn.Parameter(torch.tensor([5.0], dtype=torch.float64))

    def loss() -> Tensor:
        return 2 * torch.cosh(x).sum()

    starts: list[float] = []
    probe = SmoothnessProbe(lambda: loss(), every=1, alphas=(0.25, 0.5))
    optimizer = ClippedSGD([x], 0.05, max_norm=2.0)
    with probe.attached(optimizer):
        for _ in range(60):
            starts.append(x.item())
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    ends = [*starts[1:], x.item()]
    for record, u, v in zip(probe.records, starts, ends, strict=True):
        quotients = [
            (2 * math.sinh(u) - 2 * math.sinh(u + a * (v - u))) / (a * (u - v)) for a in (0.25, 0.5)
        ]
        assert record.gradient_norm == pytest.approx(2 * math.sinh(u), rel=1e-12)
        assert record.smoothness == pytest.approx(max(quotients), rel=1e-9)
        assert record.smoothness <= 2 + record.gradient_norm
    fit = probe.fit()
    assert fit.l1 == pytest.approx(1.0, abs=0.1)
    assert fit.log_correlation > 0.95
    assert all(
        r.smoothness <= fit.largest_ratio * (fit.l0 + fit.l1 * r.gradient_norm) * 1.0001
        for r in probe.records
    )


# --- without a trace ------------------------------------------------------------------------------


class Restless(nn.Module):
    """Dropout, running statistics, and all random states in use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (1 + 0.1 * random.random() + 0.1 * np.random.random())  # noqa: NPY002


def train(how: str) -> tuple[list[Tensor], list[SmoothnessRecord]]:
    """Parameters, gradients, buffers and random draws after 7 steps."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    model, x, public = Restless(), torch.randn(16, 4), torch.randn(8, 4)
    optimizer = Adam(model.parameters(), lr=0.05)

    def gradient_of() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(public).square().mean().backward()

    probe = SmoothnessProbe(gradient_of=gradient_of, every=3, module=model)
    if how == "loss":
        probe = SmoothnessProbe(lambda: model(public).square().mean(), every=3, module=model)
    if how != "without":
        probe.attach(optimizer)
    for _ in range(7):
        optimizer.zero_grad(set_to_none=False)
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert model.unused.grad is None
    gradients = [p.grad.clone() for p in model.body.parameters() if p.grad is not None]
    draws = torch.tensor([random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002
    return [*(v.clone() for v in model.state_dict().values()), *gradients, draws], probe.records


@pytest.mark.parametrize("how", ["loss", "gradient_of"])
def test_training_with_the_probe_is_training_without_bit_for_bit(how: str) -> None:
    plain, none = train("without")
    watched, records = train(how)
    assert none == []
    assert [r.step for r in records] == [0, 3, 6]
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_both_sources_of_gradients_measure_the_same() -> None:
    assert train("loss")[1] == train("gradient_of")[1]


def test_a_run_goes_on_after_a_public_loss_that_fails() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = SGD([x], 0.1)

    def loss() -> Tensor:
        raise RuntimeError("no public batch")

    SmoothnessProbe(loss).attach(optimizer)
    gradient = x.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="no public batch"):
        optimizer.step()
    assert torch.equal(x, torch.full((3,), 0.9))
    assert x.grad is gradient


def test_a_detached_probe_measures_no_more() -> None:
    x = nn.Parameter(torch.ones(1))
    probe = SmoothnessProbe(lambda: x.square().sum(), every=1)
    descend(probe, x, lambda: x.square().sum(), 3)
    optimizer = SGD([x], 0.1)
    x.square().sum().backward()
    optimizer.step()
    assert len(probe.records) == 3
    probe.attach(optimizer)
    with pytest.raises(InputError, match="attached already"):
        probe.attach(optimizer)


def test_steps_that_move_nothing_and_gradients_that_are_not_finite_are_left_out() -> None:
    x = nn.Parameter(torch.ones(2))
    still = SmoothnessProbe(lambda: x.square().sum(), every=1)
    descend(still, x, lambda: x.square().sum(), 2, lr=0.0)
    assert (still.records, still.left_out) == ([], 2)
    broken = SmoothnessProbe(lambda: (x * math.nan).sum(), every=1)
    descend(broken, x, lambda: x.square().sum(), 2)
    assert (broken.records, broken.left_out) == ([], 2)


def test_small_steps_in_bfloat16_are_measured_by_the_distance_really_gone() -> None:
    """Between 1 and its neighbour 0.99609375 there is no point: every alpha lands on an end."""
    x = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    loss: Callable[[], Tensor] = lambda: 2 * x.square().sum()  # noqa: E731
    probe = SmoothnessProbe(loss, every=1)
    descend(probe, x, loss, 1, lr=0.004)
    assert x.item() == 0.99609375
    assert probe.records[0].smoothness == pytest.approx(4.0, rel=0.01)


def test_all_gradients_of_a_measurement_see_the_same_dropout() -> None:
    """With one mask the Hessian is 2 / 0.5^2 where units are kept; with two masks a short step
    would divide a jump.
    """
    x = nn.Parameter(torch.ones(100))
    probe = SmoothnessProbe(lambda: nn.functional.dropout(x, 0.5).square().sum(), every=1)
    descend(probe, x, lambda: x.square().sum(), 3)
    assert all(4.0 < r.smoothness <= 8.001 for r in probe.records)
    assert len(probe.records) == 3


# --- results --------------------------------------------------------------------------------------


def with_records(pairs: list[tuple[float, float]]) -> SmoothnessProbe:
    probe = SmoothnessProbe(lambda: torch.zeros(()))
    probe.records = [
        SmoothnessRecord(t, norm, smoothness) for t, (norm, smoothness) in enumerate(pairs)
    ]
    return probe


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        ([(0.0, 2.0), (1.0, 5.0), (2.0, 8.0)], (2.0, 3.0)),
        ([(1.0, 3.0), (2.0, 1.0)], (2.0, 0.0)),  # falls: the best level line
        # would begin below 0: the best line through 0, 6 / 5
        ([(1.0, 0.0), (2.0, 3.0)], (0.0, 1.2)),
        ([(1.0, 2.0), (1.0, 4.0)], (3.0, 0.0)),  # one norm only
    ],
)
def test_the_line_is_the_best_one_without_negative_coefficients(
    pairs: list[tuple[float, float]], line: tuple[float, float]
) -> None:
    fit = with_records(pairs).fit()
    assert (fit.l0, fit.l1) == pytest.approx(line)
    assert max(y - fit.largest_ratio * (fit.l0 + fit.l1 * x) for x, y in pairs) == pytest.approx(
        0.0, abs=1e-12
    )


def test_the_correlation_is_that_of_logarithms() -> None:
    assert with_records(
        [(1.0, 1.0), (10.0, 100.0), (100.0, 1e4)]
    ).fit().log_correlation == pytest.approx(1.0)
    assert math.isnan(with_records([(1.0, 2.0), (1.0, 4.0)]).fit().log_correlation)


def test_json_holds_settings_records_and_fit() -> None:
    probe = with_records([(1.0, 2.0), (1.0, 4.0)])
    found = json.loads(probe.to_json())
    assert found["every"] == 10
    assert found["fit"] == {
        "l0": 3.0,
        "l1": 0.0,
        "largest_ratio": 4 / 3,
        "log_correlation": None,
        "records": 2,
    }
    assert found["records"][1] == {"step": 1, "gradient_norm": 1.0, "smoothness": 4.0}
    assert json.loads(with_records([]).to_json())["fit"] is None


def test_figures_are_drawn_and_the_same_twice(tmp_path: Path) -> None:
    probe = with_records([(0.5, 1.0), (1.0, 2.0), (10.0, 9.0), (0.0, 0.0)])
    for name in ("a.svg", "b.svg", "a.png"):
        probe.figure(tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "gradient norm" in drawn
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"neither \.svg nor \.png"):
        probe.figure(tmp_path / "a.pdf")
    with pytest.raises(InputError, match="too few"):
        with_records([(1.0, 1.0)]).figure(tmp_path / "c.svg")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothnessProbe(), "no sources"),
        (lambda: SmoothnessProbe(lambda: torch.zeros(()), gradient_of=lambda: None), "two sources"),
        (lambda: SmoothnessProbe(lambda: torch.zeros(()), every=0), "every is 0"),
        (lambda: SmoothnessProbe(lambda: torch.zeros(()), alphas=(0.0, 0.5)), "alphas are"),
        (lambda: SmoothnessProbe(lambda: torch.zeros(()), alphas=()), "alphas are"),
    ],
)
def test_settings_that_cannot_be_used_say_so(
    make: Callable[[], SmoothnessProbe], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()
