"""Every registered kind of event: JSON round trips and laws that none may break; fixed batches."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import InputError, make_accountant
from accounting.events import (
    ADJACENCIES,
    EVENTS,
    ApproximateDP,
    BallsInBinsGaussian,
    Composed,
    Event,
    FixedBatchesGaussian,
    Gaussian,
    Laplace,
    MixtureGaussian,
    NonPrivate,
    PoissonGaussian,
    PureDP,
    SelfComposed,
    TruncatedPoissonGaussian,
    Unsupported,
    WithoutReplacementGaussian,
    event_from_json,
)
from accounting.rdp.curve import renyi_divergence

noises = st.floats(0.0, 1e6)
probabilities = st.floats(0.0, 1.0)
adjacencies = st.sampled_from(ADJACENCIES)
sizes = st.integers(1, 10**9)


def _drawn(units: int, share: float, noise: float) -> WithoutReplacementGaussian:
    return WithoutReplacementGaussian(units, max(1, int(share * units)), noise)


PRIMITIVE: dict[type[Event], st.SearchStrategy[Event]] = {
    Gaussian: st.builds(Gaussian, noises),
    PoissonGaussian: st.builds(PoissonGaussian, probabilities, noises),
    TruncatedPoissonGaussian: st.builds(
        TruncatedPoissonGaussian, sizes, probabilities, sizes, noises
    ),
    WithoutReplacementGaussian: st.builds(_drawn, sizes, probabilities, noises),
    FixedBatchesGaussian: st.builds(
        FixedBatchesGaussian, st.integers(0, 1000), noises, st.booleans()
    ),
    Laplace: st.builds(Laplace, noises),
    PureDP: st.builds(PureDP, st.floats(0.0, 1e3), adjacencies),
    ApproximateDP: st.builds(
        ApproximateDP, st.floats(0.0, 1e3), st.floats(0.0, 0.999), adjacencies
    ),
    MixtureGaussian: st.builds(
        MixtureGaussian.accumulated, probabilities, st.integers(1, 6), noises
    ),
    BallsInBinsGaussian: st.builds(BallsInBinsGaussian, sizes, noises),
    NonPrivate: st.builds(NonPrivate, st.text()),
    Unsupported: st.builds(Unsupported, st.text(), st.text()),
}
COMPOSITE: dict[type[Event], st.SearchStrategy[Event]] = {
    SelfComposed: st.builds(SelfComposed, st.one_of(*PRIMITIVE.values()), st.integers(0, 10**9)),
    Composed: st.builds(Composed, st.lists(st.one_of(*PRIMITIVE.values()), max_size=4).map(tuple)),
}
KINDS = {**PRIMITIVE, **COMPOSITE}


def test_every_registered_kind_is_tested_here():
    assert {EVENTS.get(name) for name in EVENTS} == set(KINDS)
    assert all(EVENTS.get(name).kind == name for name in EVENTS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_survives_json(kind):
    @settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @given(event=KINDS[kind])
    def survives(event):
        again = event_from_json(json.loads(json.dumps(event.to_json())))
        assert again == event
        assert hash(again) == hash(event)
        assert type(again) is kind

    survives()


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "laplace", "noise_multiplier": -1.0},
        {"kind": "laplace"},
        {
            "kind": "without-replacement-gaussian",
            "dataset_size": 5,
            "batch_size": 6,
            "noise_multiplier": 1.0,
        },
        {
            "kind": "without-replacement-gaussian",
            "dataset_size": 5.5,
            "batch_size": 2,
            "noise_multiplier": 1.0,
        },
        {
            "kind": "truncated-poisson-gaussian",
            "dataset_size": 5,
            "sample_rate": 1.5,
            "largest_batch": 3,
            "noise_multiplier": 1.0,
        },
        {
            "kind": "fixed-batches-gaussian",
            "epochs": 2,
            "noise_multiplier": 1.0,
            "stable_batches": "yes",
        },
        {
            "kind": "fixed-batches-gaussian",
            "epochs": -1,
            "noise_multiplier": 1.0,
            "stable_batches": False,
        },
        {"kind": "pure-dp", "epsilon": 1.0, "adjacency": "nearby"},
    ],
    ids=str,
)
def test_bad_records_are_refused_in_one_line(record):
    with pytest.raises(InputError, match=";") as refusal:
        event_from_json(record)
    assert "\n" not in str(refusal.value)


# Each with more noise than the one before, under an adjacency it is accounted for.
FAMILIES = [
    ("add-remove", [Laplace(noise) for noise in (3.0, 4.0, 8.0)]),
    ("replace-one", [Laplace(noise) for noise in (3.0, 4.0, 8.0)]),
    ("zero-out", [FixedBatchesGaussian(3, noise) for noise in (2.0, 3.0, 8.0)]),
    ("replace-one", [WithoutReplacementGaussian(100, 5, noise) for noise in (1.0, 1.5, 4.0)]),
    ("zero-out", [TruncatedPoissonGaussian(100, 0.05, 8, noise) for noise in (3.0, 4.0, 9.0)]),
    ("replace-one", [TruncatedPoissonGaussian(100, 0.05, 8, noise) for noise in (3.0, 4.0, 9.0)]),
    ("zero-out", [PureDP(epsilon, "zero-out") for epsilon in (0.5, 0.4, 0.1)]),
    ("replace-one", [ApproximateDP(epsilon, 1e-9, "zero-out") for epsilon in (0.5, 0.4, 0.1)]),
]


@pytest.mark.parametrize(("adjacency", "family"), FAMILIES, ids=lambda value: str(value)[:40])
def test_laws_of_every_family(adjacency, family):
    """Rényi is not below the interval, the interval holds itself together, counts count, noise
    helps.
    """
    before = math.inf
    for event in family:
        once, often = (
            make_accountant("prv", adjacency).quote(event, count, 1e-6) for count in (1, 6)
        )
        loose = make_accountant("rdp", adjacency).quote(event, 6, 1e-6)
        assert once.upper < often.upper
        assert often.lower <= often.upper <= loose.upper
        assert once.lower <= once.upper
        assert often.upper < before
        before = often.upper
        book = make_accountant("prv", adjacency)
        book.charge(SelfComposed(event, 2))
        book.charge(event, 4)
        assert book.epsilon(1e-6) == often
        assert book.delta(often.upper) <= 1.1e-6


@pytest.mark.parametrize(("adjacency", "family"), FAMILIES, ids=lambda value: str(value)[:40])
def test_renyi_divergence_rises_with_the_order_and_falls_with_noise(adjacency, family):
    orders = (1 + 1e-5, 1.1, 1.9, 2.0, 3.0, 10.0, 64.0, 1000.0)
    curves = [[event.renyi(order, adjacency) for order in orders] for event in family]
    if isinstance(family[0], ApproximateDP):
        # The curve is that of a release that does not fail; as a whole it has no Rényi divergence.
        assert all(renyi_divergence(event, 2.0, adjacency) == math.inf for event in family)
    for curve in curves:
        assert curve == sorted(curve)
        assert curve[0] > 0.0
    for larger, smaller in itertools.pairwise(curves):
        assert all(a > b for a, b in zip(larger, smaller, strict=True))


@pytest.mark.parametrize(("adjacency", "family"), FAMILIES, ids=lambda value: str(value)[:40])
def test_the_kullback_leibler_limit_bounds_the_total_variation(adjacency, family):
    """delta(0)^2 <= 1 - e^(-rho) at every order (Bretagnolle and Huber): a check of one formula by
    another.
    """
    for event in family:
        at_zero, rho = event.delta(0.0, adjacency, False), event.renyi(1 + 1e-5, adjacency)
        if at_zero is not None:
            assert at_zero**2 <= -math.expm1(-rho) * (1 + 1e-9)


def test_fixed_batches_are_unsampled_gaussians():
    event = FixedBatchesGaussian(4, 2.0)
    assert event.gaussian_mu("zero-out") == pytest.approx(1.0, rel=1e-14)
    assert event.gaussian_mu("replace-one") == pytest.approx(2.0, rel=1e-14)
    for adjacency in ("zero-out", "replace-one"):
        ours = make_accountant("prv", adjacency).quote(event, 1, 1e-6).upper
        assert ours == pytest.approx(
            make_accountant("prv", adjacency).quote(Gaussian(1.0), 1, 1e-6).upper, rel=1e-12
        )
        assert event.renyi(3.0, adjacency) == pytest.approx(
            Gaussian(1.0).renyi(3.0, adjacency), rel=1e-12
        )
        again = make_accountant("prv", adjacency).quote(event, 2, 1e-6).upper
        assert again == pytest.approx(
            make_accountant("prv", adjacency).quote(FixedBatchesGaussian(8, 2.0), 1, 1e-6).upper,
            rel=1e-9,
        )
    pmfs = [cells.pessimistic() for cells in event.loss_grid("zero-out", 0.01, 1e-15)]
    assert len(pmfs) == 2
    assert FixedBatchesGaussian(0, 1.0).gaussian_mu("zero-out") == 0.0


def test_adding_a_unit_must_not_move_the_others():
    moving, stable = FixedBatchesGaussian(2, 1.0), FixedBatchesGaussian(2, 1.0, stable_batches=True)
    for name in ("prv", "rdp"):
        answer = make_accountant(name, "add-remove").quote(moving, 1, 1e-5)
        assert answer.upper == math.inf
        assert "stable_batches" in answer.note
        exact = make_accountant(name, "zero-out").quote(moving, 1, 1e-5).upper
        assert make_accountant(name, "add-remove").quote(stable, 1, 1e-5).upper == exact
    assert moving.gaussian_mu("add-remove") is None
    assert moving.renyi(2.0, "add-remove") == math.inf
