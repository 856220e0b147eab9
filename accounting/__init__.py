"""Privacy accounting for differentially private training, without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accounting.accountant import Accountant, PRVAccountant, RenyiAccountant, make_accountant, profile, spend_curve
    from accounting.calibration import Calibration, calibrate_noise_multiplier, most_steps
    from accounting.comparison import Comparison, compare
    from accounting.errors import InvalidInput, Refused
    from accounting.events import (
        Adjacency,
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
        flatten,
    )
    from accounting.filters import BudgetSpent, GdpFilter, PlugInFigure, RenyiFilter
    from accounting.interval import Guarantee, Interval
    from accounting.journal import Journal, JournalBusy, JournalCorrupt
    from accounting.odometer import Odometer

__all__ = [
    "Accountant",
    "Adjacency",
    "ApproximateDP",
    "BallsInBinsGaussian",
    "BudgetSpent",
    "Calibration",
    "Comparison",
    "Composed",
    "Event",
    "FixedBatchesGaussian",
    "Gaussian",
    "GdpFilter",
    "Guarantee",
    "Interval",
    "InvalidInput",
    "Journal",
    "JournalBusy",
    "JournalCorrupt",
    "Laplace",
    "MixtureGaussian",
    "NonPrivate",
    "Odometer",
    "PRVAccountant",
    "PlugInFigure",
    "PoissonGaussian",
    "PureDP",
    "Refused",
    "RenyiAccountant",
    "RenyiFilter",
    "SelfComposed",
    "TruncatedPoissonGaussian",
    "Unsupported",
    "WithoutReplacementGaussian",
    "calibrate_noise_multiplier",
    "compare",
    "event_from_json",
    "flatten",
    "make_accountant",
    "most_steps",
    "profile",
    "spend_curve",
]

_HOMES = {
    "accountant": (
        "Accountant",
        "PRVAccountant",
        "RenyiAccountant",
        "make_accountant",
        "profile",
        "spend_curve",
    ),
    "calibration": (
        "Calibration",
        "calibrate_noise_multiplier",
        "most_steps",
    ),
    "comparison": (
        "Comparison",
        "compare",
    ),
    "errors": (
        "InvalidInput",
        "Refused",
    ),
    "events": (
        "Adjacency",
        "ApproximateDP",
        "BallsInBinsGaussian",
        "Composed",
        "Event",
        "FixedBatchesGaussian",
        "Gaussian",
        "Laplace",
        "MixtureGaussian",
        "NonPrivate",
        "PoissonGaussian",
        "PureDP",
        "SelfComposed",
        "TruncatedPoissonGaussian",
        "Unsupported",
        "WithoutReplacementGaussian",
        "event_from_json",
        "flatten",
    ),
    "filters": (
        "BudgetSpent",
        "GdpFilter",
        "PlugInFigure",
        "RenyiFilter",
    ),
    "interval": (
        "Guarantee",
        "Interval",
    ),
    "journal": (
        "Journal",
        "JournalBusy",
        "JournalCorrupt",
    ),
    "odometer": ("Odometer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name on first use: scipy takes longer to load than most commands take to run."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'accounting' has no attribute {name!r}")
    return getattr(importlib.import_module(f"accounting.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
