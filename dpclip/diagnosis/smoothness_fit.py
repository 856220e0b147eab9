"""Measured smoothness against gradient norm: the records, the line through them, the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpclip.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SmoothnessRecord:
    """One measured step.

    Attributes:
        step: number of the step, from 0 on, since the probe was attached.
        gradient_norm: L2 norm of the public batch's gradient before the step.
        smoothness: largest change of that gradient over the way gone, an estimate of the Hessian's
            norm.
    """

    step: int
    gradient_norm: float
    smoothness: float


@dataclass(frozen=True)
class SmoothnessFit:
    """The line smoothness = l0 + l1 * gradient_norm.

    Attributes:
        l0: L0, at least 0.
        l1: L1, at least 0.
        largest_ratio: largest smoothness over the line; l0 and l1 times this bound every record
            from above.
        log_correlation: Pearson's, of the logarithms; NaN where one of them does not vary.
        records: how many were fitted.
    """

    l0: float
    l1: float
    largest_ratio: float
    log_correlation: float
    records: int


def fit_line(records: Sequence[SmoothnessRecord]) -> SmoothnessFit:
    """Least-squares L0 and L1, neither below 0.

    Args:
        records: measured steps.

    Raises:
        InputError: fewer than two records.
    """
    if len(records) < 2:
        raise InputError(f"{len(records)} records are too few for a line; measure more steps")
    x = np.array([r.gradient_norm for r in records])
    y = np.array([r.smoothness for r in records])
    l0, l1 = _line(x, y)
    line = l0 + l1 * x
    ratio = float((y[line > 0] / line[line > 0]).max()) if (line > 0).any() else 1.0
    return SmoothnessFit(l0, l1, ratio, _log_correlation(x, y), len(x))


def draw(records: Sequence[SmoothnessRecord], fit: SmoothnessFit, path: Path) -> None:
    """Draw the figure of `SmoothnessProbe.figure`; an SVG is the same bytes for the same records.

    Args:
        records: measured steps; those with a 0 are left out, as the axes are logarithmic.
        fit: the line that is drawn through them.
        path: of the figure, overwritten; its suffix is the format.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "smoothness"}):
        chart = Figure(figsize=(4.5, 3.2), layout="constrained")
        _panel(chart.add_subplot(), records, fit)
        chart.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares under l0, l1 >= 0; for y >= 0 at most one of the two bounds is active."""
    spread = float(((x - x.mean()) ** 2).sum())
    l1 = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    l0 = float(y.mean() - l1 * x.mean())
    if l1 <= 0:
        return float(y.mean()), 0.0
    return (l0, l1) if l0 >= 0 else (0.0, float((x * y).sum() / (x * x).sum()))


def _log_correlation(x: np.ndarray, y: np.ndarray) -> float:
    kept = (x > 0) & (y > 0)
    u, v = np.log(x[kept]), np.log(y[kept])
    return (
        float(np.corrcoef(u, v)[0, 1]) if len(u) > 1 and u.std() > 0 and v.std() > 0 else math.nan
    )


def _panel(axes: Axes, records: Sequence[SmoothnessRecord], fit: SmoothnessFit) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    kept = [r for r in records if r.gradient_norm > 0 and r.smoothness > 0]
    x = np.array([r.gradient_norm for r in kept])
    dots = axes.scatter(
        x, [r.smoothness for r in kept], c=[r.step for r in kept], s=14, cmap="viridis"
    )
    if len(x) and fit.l0 + fit.l1 > 0:
        grid = np.geomspace(x.min(), x.max(), 100)
        axes.plot(
            grid,
            fit.l0 + fit.l1 * grid,
            color="#b4531f",
            linewidth=1.4,
            label=f"{fit.l0:.3g} + {fit.l1:.3g} ‖g‖",
        )
        axes.legend(frameon=False, fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="gradient norm ‖g‖", ylabel="smoothness along the step"
    )
    # fewer, shorter labels than the default's on a range below a decade
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.grid(color="#dde2e7", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.figure.colorbar(dots, ax=axes, label="step")
