"""Events: validation, JSON round trip, flattening."""

import json
import math

import pytest

from accounting import (
    Composed,
    Gaussian,
    InputError,
    NonPrivate,
    PoissonGaussian,
    SelfComposed,
    Unsupported,
    event_from_json,
    flatten,
)

EVENTS = [
    Gaussian(1.5),
    PoissonGaussian(0.01, 1.1),
    SelfComposed(PoissonGaussian(0.01, 1.1), 14063),
    Composed(
        (Gaussian(3.0), SelfComposed(Composed((Gaussian(2.0), PoissonGaussian(1.0, 2.0))), 3))
    ),
    NonPrivate("published raw"),
    Unsupported("balls-and-bins", "not implemented"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_json(event):
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


def test_a_kind_of_the_future_is_unsupported_with_a_reason():
    event = event_from_json({"kind": "quantum", "qubits": 3})
    assert isinstance(event, Unsupported)
    assert event.name == "quantum"
    assert "quantum" in event.reason


@pytest.mark.parametrize(
    "build",
    [
        lambda: Gaussian(-1.0),
        lambda: Gaussian(math.nan),
        lambda: Gaussian(math.inf),
        lambda: Gaussian("1"),
        lambda: PoissonGaussian(1.1, 1.0),
        lambda: PoissonGaussian(-0.1, 1.0),
        lambda: PoissonGaussian(math.nan, 1.0),
        lambda: PoissonGaussian(True, 1.0),
        lambda: SelfComposed(Gaussian(1.0), -1),
        lambda: SelfComposed(Gaussian(1.0), 1.5),
        lambda: SelfComposed(Gaussian(1.0), True),
        lambda: event_from_json({"sample_rate": 0.1}),
        lambda: event_from_json({"kind": "gaussian"}),
        lambda: event_from_json([]),
    ],
)
def test_bad_values_are_refused_in_one_line(build):
    with pytest.raises(InputError) as refusal:
        build()
    assert "\n" not in str(refusal.value)
    assert ";" in str(refusal.value), "the remedy follows the reason"


def test_flatten_adds_up_equal_releases_through_all_nesting():
    inner = Composed((Gaussian(2.0), SelfComposed(PoissonGaussian(0.1, 1.0), 4)))
    event = Composed((Gaussian(2.0), SelfComposed(inner, 3), SelfComposed(Gaussian(9.0), 0)))
    assert flatten(event) == [(Gaussian(2.0), 4), (PoissonGaussian(0.1, 1.0), 12)]
