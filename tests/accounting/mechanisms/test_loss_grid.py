"""One release on a grid: the pessimistic distribution dominates the exact profile, the optimistic
one is dominated.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from accounting.mechanisms.loss_grid import LossPmf, Mixture, loss_grid_from_atoms
from accounting.mechanisms.poisson_gaussian import poisson_loss_grid

EPSILONS = (-3.0, -0.7, -0.05, 0.0, 0.003, 0.1, 0.4, 1.0, 2.5, 6.0)


def divergence(pmf: LossPmf, epsilon: float) -> float:
    """E[(1 - e^(eps - L))+] of a distribution on the grid, less what must be taken off."""
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    above = losses > epsilon
    return (
        pmf.infinite - float(pmf.masses[above] @ np.expm1(epsilon - losses[above])) - pmf.lowered_by
    )


def threshold_divergence(p, q, sigma: float, epsilon: float, ascending: bool) -> float:
    """max(P - e^eps Q) over half lines, on a fine set of thresholds: exact for a monotone
    likelihood ratio.
    """
    means = [mean for _, mean in (*p, *q)]
    x = np.linspace(min(means) - 9 * sigma, max(means) + 9 * sigma, 400_001)
    sign = -1.0 if ascending else 1.0
    p_side = sum(weight * ndtr(sign * (x - mean) / sigma) for weight, mean in p)
    q_side = sum(weight * ndtr(sign * (x - mean) / sigma) for weight, mean in q)
    return max(0.0, 1.0 - math.exp(epsilon), float(np.max(p_side - math.exp(epsilon) * q_side)))


@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(
    rate=st.sampled_from([1e-4, 0.01, 0.3, 0.9, 0.999999, 1.0]),
    sigma=st.sampled_from([0.2, 0.5, 1.0, 2.0, 20.0]),
    width=st.sampled_from([0.001, 0.01, 0.05, 0.7]),
    adjacency=st.sampled_from(["add-remove", "replace-one"]),
)
@pytest.mark.slow
def test_one_release_is_bounded_from_both_sides_in_every_direction(rate, sigma, width, adjacency):
    mixture, nothing = ((1 - rate, 0.0), (rate, 1.0)), ((1.0, 0.0),)
    mirrored = ((1 - rate, 0.0), (rate, -1.0))
    pairs = [(mixture, nothing, True), (nothing, mixture, False)]
    if adjacency == "replace-one":
        pairs = [(mixture, mirrored, True)]
    directions = poisson_loss_grid(rate, sigma, adjacency, width, 1e-15)
    assert len(directions) == len(pairs)
    for cells, (p, q, ascending) in zip(directions, pairs, strict=True):
        above, below = cells.pessimistic(), cells.optimistic()
        assert above.masses.min() >= 0
        assert below.masses.min() >= 0
        assert above.masses.sum() + above.infinite == pytest.approx(1.0, abs=1e-12)
        assert below.masses.sum() - below.lowered_by <= 1.0
        for epsilon in EPSILONS:
            exact = threshold_divergence(p, q, sigma, epsilon, ascending)
            assert divergence(above, epsilon) >= exact * (1 - 1e-9) - 1e-13
            assert divergence(below, epsilon) <= exact * (1 + 1e-9) + 1e-13
            assert divergence(above, epsilon) <= exact + 0.3 * width


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.0), (0.3, 0.5), (0.001, 0.6), (0.9, 2.0)])
def test_both_bounds_close_in_quadratically(rate, sigma, adjacency):
    gaps = []
    for width in (0.02, 0.01, 0.005):
        cells = poisson_loss_grid(rate, sigma, adjacency, width * min(1.0, 50 * rate), 1e-15)[0]
        above, below = cells.pessimistic(), cells.optimistic()
        gaps.append(max(divergence(above, e) - divergence(below, e) for e in (0.05, 0.2, 0.5, 1.0)))
    assert gaps[1] <= 0.4 * gaps[0]
    assert gaps[2] <= 0.4 * gaps[1]


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(
    atoms=st.lists(st.tuples(st.floats(-4.0, 4.0), st.floats(0.01, 1.0)), min_size=1, max_size=6),
    width=st.sampled_from([0.01, 0.3, 2.0]),
    infinite=st.sampled_from([0.0, 0.1]),
)
def test_atoms_are_bounded_from_both_sides(atoms, width, infinite):
    total = sum(mass for _, mass in atoms) / (1 - infinite)
    losses, masses = [loss for loss, _ in atoms], [mass / total for _, mass in atoms]
    cells = loss_grid_from_atoms(losses, masses, infinite, width, 1e-15)
    for epsilon in EPSILONS:
        exact = infinite + sum(
            m * max(0.0, -math.expm1(epsilon - loss))
            for loss, m in zip(losses, masses, strict=True)
        )
        assert divergence(cells.pessimistic(), epsilon) >= exact - 1e-12
        assert divergence(cells.optimistic(), epsilon) <= exact + 1e-12


def test_a_mixture_is_bounded_by_the_mixture_of_the_bounds():
    parts = [poisson_loss_grid(rate, 0.7, "add-remove", 0.01, 1e-15)[0] for rate in (0.02, 0.3)]
    mixture = Mixture(((0.25, parts[0]), (0.75, parts[1])))
    for epsilon in EPSILONS:
        above = 0.25 * divergence(parts[0].pessimistic(), epsilon) + 0.75 * divergence(
            parts[1].pessimistic(), epsilon
        )
        below = 0.25 * divergence(parts[0].optimistic(), epsilon) + 0.75 * divergence(
            parts[1].optimistic(), epsilon
        )
        assert divergence(mixture.pessimistic(), epsilon) >= above - 1e-12
        assert divergence(mixture.pessimistic(), epsilon) <= above + 0.003
        assert divergence(mixture.optimistic(), epsilon) <= below + 1e-12
