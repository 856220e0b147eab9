"""Our accountants behind dp-accounting's interface, so that its conformance suite can be run on
them.

dp-accounting's noise multipliers are relative to the norm C of one record, as ours are: under
REPLACE_ONE both move the sum by up to 2C.
"""

from __future__ import annotations

import math

from dp_accounting import dp_event
from dp_accounting.privacy_accountant import NeighboringRelation, PrivacyAccountant

from accounting import Event, Gaussian, InputError, NonPrivate, PoissonGaussian, make_accountant

ADJACENCY = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: "add-remove",
    NeighboringRelation.REPLACE_ONE: "replace-one",
    NeighboringRelation.REPLACE_SPECIAL: "zero-out",
}


class AccountantAdapter(PrivacyAccountant):
    """One of our accountants, by name, as a dp-accounting `PrivacyAccountant`."""

    def __init__(
        self, name: str, relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE
    ) -> None:
        super().__init__(relation)
        self.name = name
        self._book = make_accountant(name, ADJACENCY[relation])

    def _maybe_compose(
        self, event: dp_event.DpEvent, count: int, do_compose: bool
    ) -> PrivacyAccountant.CompositionErrorDetails | None:
        if isinstance(event, dp_event.NoOpDpEvent):
            return None
        if isinstance(event, dp_event.SelfComposedDpEvent):
            return self._maybe_compose(event.event, event.count * count, do_compose)
        if isinstance(event, dp_event.ComposedDpEvent):
            refusals = (self._maybe_compose(part, count, do_compose) for part in event.events)
            return next((refusal for refusal in refusals if refusal is not None), None)
        try:
            ours = translated(event)
        except InputError as refusal:
            return self.CompositionErrorDetails(invalid_event=event, error_message=str(refusal))
        if ours is None:
            return self.CompositionErrorDetails(
                invalid_event=event, error_message="Unsupported event."
            )
        if do_compose:
            self._book.charge(ours, count)
        return None

    def get_epsilon(self, target_delta: float) -> float:
        """Upper bound on epsilon; every mechanism is (0, 1)-private, but a non-private one stays
        infinite.
        """
        if target_delta >= 1:
            return (
                math.inf
                if any(self._book.supports(event) for event, _ in self._book.events)
                else 0.0
            )
        return self._book.epsilon(target_delta).upper

    def get_delta(self, target_epsilon: float) -> float:
        """Upper bound on delta."""
        return self._book.delta(target_epsilon)


def translated(event: dp_event.DpEvent) -> Event | None:
    """Our primitive event for one of theirs, or None; raises InputError for parameters out of
    range.
    """
    if isinstance(event, dp_event.NonPrivateDpEvent):
        return NonPrivate("dp-accounting's NonPrivateDpEvent")
    if isinstance(event, dp_event.GaussianDpEvent):
        return Gaussian(event.noise_multiplier)
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(
        event.event, dp_event.GaussianDpEvent
    ):
        return PoissonGaussian(event.sampling_probability, event.event.noise_multiplier)
    return None
