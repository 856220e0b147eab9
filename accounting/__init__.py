"""Privacy accounting for differentially private training, without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accounting.accountant import Accountant, PRVAccountant, RenyiAccountant, make_accountant, profile, spend_curve
    from accounting.calibration import (
        Advantage,
        Calibration,
        TargetCalibration,
        TruePositiveRate,
        calibrate_noise_multiplier,
        calibrate_noise_multiplier_for,
        calibrate_sample_rate,
        most_steps,
    )
    from accounting.comparison import Comparison, compare
    from accounting.conversion import (
        group_event,
        group_privacy,
        mu_from_epsilon_delta,
        mu_from_zcdp,
        replace_one_from_add_remove,
    )
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
    from accounting.selection import FixedRuns, PoissonRuns, TruncatedNegativeBinomial, selection_epsilon
    from accounting.tradeoff import (
        GaussianFit,
        advantage,
        best_guess,
        gaussian_fit,
        gdp_mu,
        largest_true_positive_rate,
        profile_points,
        trade_off_curve,
        true_positive_rate,
    )

__all__ = [
    "Accountant",
    "Adjacency",
    "Advantage",
    "ApproximateDP",
    "BallsInBinsGaussian",
    "BudgetSpent",
    "Calibration",
    "Comparison",
    "Composed",
    "Event",
    "FixedBatchesGaussian",
    "FixedRuns",
    "Gaussian",
    "GaussianFit",
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
    "PoissonRuns",
    "PureDP",
    "Refused",
    "RenyiAccountant",
    "RenyiFilter",
    "SelfComposed",
    "TargetCalibration",
    "TruePositiveRate",
    "TruncatedNegativeBinomial",
    "TruncatedPoissonGaussian",
    "Unsupported",
    "WithoutReplacementGaussian",
    "advantage",
    "best_guess",
    "calibrate_noise_multiplier",
    "calibrate_noise_multiplier_for",
    "calibrate_sample_rate",
    "compare",
    "event_from_json",
    "flatten",
    "gaussian_fit",
    "gdp_mu",
    "group_event",
    "group_privacy",
    "largest_true_positive_rate",
    "make_accountant",
    "most_steps",
    "mu_from_epsilon_delta",
    "mu_from_zcdp",
    "profile",
    "profile_points",
    "replace_one_from_add_remove",
    "selection_epsilon",
    "spend_curve",
    "trade_off_curve",
    "true_positive_rate",
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
        "Advantage",
        "Calibration",
        "TargetCalibration",
        "TruePositiveRate",
        "calibrate_noise_multiplier",
        "calibrate_noise_multiplier_for",
        "calibrate_sample_rate",
        "most_steps",
    ),
    "comparison": (
        "Comparison",
        "compare",
    ),
    "conversion": (
        "group_event",
        "group_privacy",
        "mu_from_epsilon_delta",
        "mu_from_zcdp",
        "replace_one_from_add_remove",
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
    "selection": (
        "FixedRuns",
        "PoissonRuns",
        "TruncatedNegativeBinomial",
        "selection_epsilon",
    ),
    "tradeoff": (
        "GaussianFit",
        "advantage",
        "best_guess",
        "gaussian_fit",
        "gdp_mu",
        "largest_true_positive_rate",
        "profile_points",
        "trade_off_curve",
        "true_positive_rate",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name on first use: scipy takes longer to load than most commands take to run."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'accounting' has no attribute {name!r}")
    return getattr(importlib.import_module(f"accounting.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
