"""Laws that every accounting event must keep: it is written, read back, and never too cheap."""

from __future__ import annotations

import contextlib
import json
import math
from itertools import pairwise

from accounting import CannotComputeError, Event, event_from_json, make_accountant
from accounting.events import ADJACENCIES

_ORDERS = (1.5, 2.0, 4.0, 8.0, 32.0)
_DELTA = 1e-5
_INTERVAL = 1e-3  # of a grid of losses, which are rounded up to it


def check_event(event: Event, adjacencies: tuple[str, ...] = ADJACENCIES) -> None:
    """Hold an event to all laws.

    Args:
        event: of a registered kind.
        adjacencies: under which it has a guarantee; under the others it must say why it has none.

    Raises:
        AssertionError: names what does not hold.
    """
    it_reads_back(event)
    for adjacency in ADJACENCIES:
        if adjacency in adjacencies:
            divergences_rise_with_the_order(event, adjacency)
            divergences_are_those_of_the_losses(event, adjacency)
            more_releases_cost_no_less(event, adjacency)
            the_accountants_agree(event, adjacency)
        else:
            assert event.unsupported_reason(adjacency), f"silent about {adjacency}"


def it_reads_back(event: Event) -> None:
    """Through JSON and the registry: a ledger must tell later what was charged."""
    again = event_from_json(json.loads(json.dumps(event.to_json())))
    assert again == event, f"{event} is read back as {again}"
    assert hash(again) == hash(event)


def divergences_rise_with_the_order(event: Event, adjacency: str) -> None:
    """Rényi divergences are not negative and do not fall as the order grows."""
    found = [event.renyi(order, adjacency) for order in _ORDERS]
    assert found[0] >= 0, f"a negative divergence {found[0]}"
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(found)), f"divergences {found} fall"


def divergences_are_those_of_the_losses(event: Event, adjacency: str) -> None:
    """No Rényi divergence is below that of the loss distribution, where the event has one."""
    with contextlib.suppress(CannotComputeError):
        for grid in event.loss_grid(adjacency, _INTERVAL, 1e-12):
            losses = grid.pessimistic()
            for order in _ORDERS[:4]:
                tilt = order - 1
                found = losses.cumulant(tilt) / tilt + losses.offset - _INTERVAL
                stated = event.renyi(order, adjacency)
                assert stated >= found - 1e-6, f"order {order}: {stated} is below {found}"


def more_releases_cost_no_less(event: Event, adjacency: str) -> None:
    """Epsilon grows with the number of releases and falls as delta grows."""
    book = make_accountant("rdp", adjacency)
    epsilons = [book.quote(event, count, _DELTA).upper for count in (1, 2, 8)]
    assert epsilons[0] >= 0
    assert epsilons == sorted(epsilons), f"1, 2 and 8 releases cost {epsilons}"
    assert book.quote(event, 2, 10 * _DELTA).upper <= epsilons[1]


def the_accountants_agree(event: Event, adjacency: str) -> None:
    """The composed loss distribution is within the Rényi bound, and its interval is in order."""
    exact = make_accountant("prv", adjacency).quote(event, 4, _DELTA)
    bound = make_accountant("rdp", adjacency).quote(event, 4, _DELTA).upper
    assert exact.upper <= bound * (1 + 1e-9), f"{exact.upper} is above the Rényi bound {bound}"
    if exact.lower is not None and math.isfinite(exact.upper):
        assert 0 <= exact.lower <= exact.upper, f"[{exact.lower}, {exact.upper}] is no interval"
