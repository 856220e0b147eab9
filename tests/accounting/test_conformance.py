"""dp-accounting's abstract conformance suite, and a few of its concrete expectations, run on our
accountants.
"""

from __future__ import annotations

import math
from itertools import product

import pytest

pytest.importorskip("dp_accounting", reason="dp-accounting is an oracle of the tests only")

from dp_accounting import dp_event, privacy_accountant_test
from dp_accounting.privacy_accountant import NeighboringRelation, UnsupportedEventError

from accounting.mechanisms.gaussian import gaussian_epsilon
from tests.support.dp_accounting_adapter import AccountantAdapter

NAMES = ("prv", "rdp")


class TestConformance(privacy_accountant_test.PrivacyAccountantTest):
    """The suite runs each of its tests on all of these."""

    def _make_test_accountants(self):
        return [
            AccountantAdapter(name, relation)
            for name, relation in product(NAMES, NeighboringRelation)
        ]


@pytest.fixture(
    params=[(name, relation) for name in NAMES for relation in NeighboringRelation], ids=str
)
def accountant(request):
    return AccountantAdapter(*request.param)


def training(steps: int = 100) -> dp_event.DpEvent:
    step = dp_event.PoissonSampledDpEvent(0.01, dp_event.GaussianDpEvent(1.0))
    return dp_event.SelfComposedDpEvent(step, steps)


def test_asking_what_is_supported_charges_nothing(accountant):
    assert accountant.supports(training())
    assert accountant.supports(dp_event.GaussianDpEvent(0.0))
    assert accountant.get_epsilon(1e-5) == 0.0
    accountant.compose(training())
    before = accountant.get_epsilon(1e-5)
    assert 0.0 < before < math.inf
    assert not accountant.supports(
        dp_event.ComposedDpEvent([training(), dp_event.UnsupportedDpEvent()])
    )
    with pytest.raises(UnsupportedEventError):
        accountant.compose(dp_event.ComposedDpEvent([training(), dp_event.UnsupportedDpEvent()]))
    assert accountant.get_epsilon(1e-5) == before


def test_counts_are_honoured_however_they_are_nested(accountant):
    step = dp_event.PoissonSampledDpEvent(0.01, dp_event.GaussianDpEvent(1.0))
    nested = dp_event.ComposedDpEvent(
        [dp_event.SelfComposedDpEvent(step, 5), step, dp_event.NoOpDpEvent()]
    )
    accountant.compose(dp_event.SelfComposedDpEvent(nested, 4), 10).compose(step, 60)
    other = AccountantAdapter(accountant.name, accountant.neighboring_relation).compose(
        training(300)
    )
    assert accountant.get_epsilon(1e-6) == other.get_epsilon(1e-6)


def test_delta_and_epsilon_are_inverse_up_to_the_accountants_width(accountant):
    accountant.compose(training(500))
    epsilon = accountant.get_epsilon(1e-5)
    assert 0.7e-5 <= accountant.get_delta(epsilon) <= 1.3e-5
    assert accountant.get_epsilon(1e-6) > epsilon > accountant.get_epsilon(1e-4)


def test_replacing_a_record_of_an_unsampled_gaussian_doubles_mu():
    expected = {NeighboringRelation.REPLACE_ONE: gaussian_epsilon(1e-5, 2.0)}
    for relation in NeighboringRelation:
        found = (
            AccountantAdapter("prv", relation)
            .compose(dp_event.GaussianDpEvent(10.0), 100)
            .get_epsilon(1e-5)
        )
        assert found == pytest.approx(expected.get(relation, gaussian_epsilon(1e-5, 1.0)), rel=1e-9)


def test_nothing_sampled_costs_nothing_and_no_noise_costs_everything(accountant):
    accountant.compose(dp_event.PoissonSampledDpEvent(0.0, dp_event.GaussianDpEvent(1.0)), 100)
    assert accountant.get_epsilon(1e-5) == 0.0
    accountant.compose(dp_event.PoissonSampledDpEvent(0.5, dp_event.GaussianDpEvent(0.0)))
    assert accountant.get_epsilon(1e-5) == math.inf


@pytest.mark.parametrize(
    "event",
    [
        dp_event.PoissonSampledDpEvent(0.1, dp_event.LaplaceDpEvent(1.0)),
        dp_event.PoissonSampledDpEvent(
            0.1, dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(1.0))
        ),
        dp_event.SampledWithoutReplacementDpEvent(100, 10, dp_event.GaussianDpEvent(1.0)),
        dp_event.PoissonSampledDpEvent(1.5, dp_event.GaussianDpEvent(1.0)),
        dp_event.GaussianDpEvent(-1.0),
        dp_event.GaussianDpEvent(math.nan),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_was_not_translated_is_refused_by_name(accountant, event):
    assert not accountant.supports(event)
    with pytest.raises(UnsupportedEventError, match="caused by subevent"):
        accountant.compose(dp_event.ComposedDpEvent([event]))
    assert accountant.get_epsilon(1e-5) == 0.0
