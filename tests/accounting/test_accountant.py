"""Accountants, their comparison, profiles and curves."""

import math

import pytest

from accounting import (
    Gaussian,
    InputError,
    Interval,
    NonPrivate,
    PoissonGaussian,
    compare,
    make_accountant,
    profile,
    spend_curve,
)
from accounting import accountant as accountant_module
from accounting import comparison as comparison_module
from accounting.prv_library import prv_opinion

STANDARD = [(PoissonGaussian(0.01, 1.0), 1000)]


def test_an_unknown_accountant_or_adjacency_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="prv, rdp"):
        make_accountant("moments", "add-remove")
    with pytest.raises(InputError, match="replace-one"):
        make_accountant("prv", "swap")


@pytest.mark.parametrize("name", ["rdp", "prv"])
def test_a_refused_charge_leaves_the_books_alone(name):
    book = make_accountant(name, "add-remove")
    book.charge(Gaussian(2.0), 3)
    for event, count in ((Gaussian(2.0), -1), (Gaussian(2.0), 1.5), ("gaussian", 1)):
        with pytest.raises(InputError):
            book.charge(event, count)
    assert book.events == [(Gaussian(2.0), 3)]
    for delta in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="delta"):
            book.epsilon(delta)
    with pytest.raises(InputError, match="epsilon"):
        book.delta(-1.0)


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_prv_is_never_above_rdp(adjacency):
    for rate, sigma, count, delta in (
        (0.01, 1.0, 1000, 1e-5),
        (0.2, 3.0, 50, 1e-7),
        (1.0, 2.0, 2, 1e-3),
    ):
        event = PoissonGaussian(rate, sigma)
        loose, tight = (
            make_accountant(name, adjacency).quote(event, count, delta) for name in ("rdp", "prv")
        )
        assert tight.upper <= loose.upper


def test_replace_one_is_valid_against_an_independent_implementation():
    # dp-accounting's loss distributions under replace-one give 2.8440 (grid 1e-3).
    for name in ("rdp", "prv"):
        assert make_accountant(name, "replace-one").quote(*STANDARD[0], 1e-5).upper >= 2.8430


def test_prv_falls_back_to_renyi_with_a_note_where_distributions_are_refused(monkeypatch):
    from accounting import CannotComputeError

    def refuse(events, delta, adjacency):
        raise CannotComputeError("too large for this test")

    monkeypatch.setattr(accountant_module, "pld_epsilon", refuse)
    answer = make_accountant("prv", "add-remove").quote(*STANDARD[0], 1e-5)
    assert answer.upper == make_accountant("rdp", "add-remove").quote(*STANDARD[0], 1e-5).upper
    assert "too large for this test" in answer.note


def test_delta_zero_is_infinite_for_gaussian_noise():
    assert make_accountant("prv", "add-remove").quote(*STANDARD[0], 0.0).upper == math.inf


def test_three_opinions_on_an_ordinary_run_agree():
    verdict = compare(STANDARD, 1e-5, "add-remove")
    renyi, ours, library = verdict.opinions
    assert verdict.agree
    assert verdict.accountant == "prv"
    assert verdict.epsilon == ours.upper < renyi.upper
    assert library.lower <= ours.upper
    assert library.lower <= 1.82824 <= library.upper
    assert compare(STANDARD, 1e-5, "add-remove", "rdp").epsilon == renyi.upper


def test_a_second_opinion_that_cannot_run_is_named():
    verdict = compare([(PoissonGaussian(0.05, 1.0), 10)], 1e-5, "replace-one")
    assert verdict.agree
    assert "prv-accountant not run" in verdict.reason
    assert "replace-one" in verdict.reason


def test_an_opinion_above_our_bound_makes_the_larger_figure_count(monkeypatch):
    monkeypatch.setattr(
        comparison_module, "prv_opinion", lambda *_: Interval("prv-accountant", 1.9, 2.0, 2.05, "")
    )
    verdict = compare(STANDARD, 1e-5, "add-remove")
    assert not verdict.agree
    assert verdict.epsilon == pytest.approx(2.1014, abs=1e-4)  # the Rényi bound
    assert "above our bound" in verdict.reason


def test_nothing_finite_is_reported_of_an_unprivate_release():
    verdict = compare([*STANDARD, (NonPrivate("test labels were used"), 1)], 1e-5, "add-remove")
    assert verdict.epsilon == math.inf
    assert "test labels were used" in verdict.reason


def test_the_second_opinion_contains_the_truth_where_it_runs():
    for rate, sigma, steps, delta, truth in (
        (0.01, 1.0, 1, 1e-5, 0.19945),
        (0.1, 2.0, 500, 1e-5, 5.55547),
    ):
        opinion = prv_opinion([(PoissonGaussian(rate, sigma), steps)], delta, "add-remove")
        assert opinion.lower <= truth <= opinion.upper


@pytest.mark.parametrize(
    ("event", "count", "delta", "word"),
    [
        (PoissonGaussian(0.01, 0.02), 1, 1e-5, "RuntimeError"),
        (Gaussian(1.0), 10**6, 1e-5, "too large"),
        (PoissonGaussian(0.01, 0.0), 1, 1e-5, "no noise"),
        (PoissonGaussian(0.01, 1.0), 1, 0.0, "delta"),
        (NonPrivate("x"), 1, 1e-5, "non-private"),
        (PoissonGaussian(0.01, 1.0), 1000, 1e-15, "ValueError"),
    ],
)
def test_a_failing_second_opinion_is_named_and_never_raised(event, count, delta, word):
    opinion = prv_opinion([(event, count)], delta, "add-remove")
    assert opinion.upper == math.inf
    assert word in opinion.note


def test_negative_answers_of_the_library_become_zero():
    opinion = prv_opinion([(PoissonGaussian(0.01, 1.0), 1)], 0.02, "add-remove")
    assert (opinion.lower, opinion.upper) == (0.0, 0.0)


def test_profile_falls_with_delta():
    pairs = profile(STANDARD, "add-remove", [1e-3, 1e-5, 1e-7], "prv")
    assert [delta for delta, _ in pairs] == [1e-3, 1e-5, 1e-7]
    assert pairs[0][1] < pairs[1][1] < pairs[2][1]
    assert pairs[1][1] == pytest.approx(1.82824, rel=3e-4)


@pytest.mark.parametrize("name", ["rdp", "prv"])
def test_spend_curve_starts_at_zero_and_never_falls(name):
    counts = [0, 1, 2, 3, 10, 100, 101, 500, 1000]
    curve = spend_curve(PoissonGaussian(0.01, 1.0), counts, 1e-5, "add-remove", name)
    values = [epsilon for _, epsilon in curve]
    assert [count for count, _ in curve] == counts
    assert values[0] == 0.0
    assert values == sorted(values)
    with pytest.raises(InputError, match="increasing"):
        spend_curve(PoissonGaussian(0.01, 1.0), [5, 1], 1e-5, "add-remove", "prv")
