"""Figures as inline SVG: the same bytes for the same points, nothing loaded from elsewhere."""

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

from dpclip.report import rounding
from dpclip.report.content import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5a94", "#b4531f", "#2f7d4f", "#7a4a9e", "#8a6d1a", "#a03050", "#3d7f8c", "#5f6b76")
INK, GRID = "#3c4650", "#dde2e7"
SIZE = (4.0, 2.5)  # inches; the page scales it
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "path.simplify": True,
}


def svg(plot: Plot, anchor: str) -> str:
    """Draw a figure as an ``<svg>`` element.

    Args:
        plot: what it shows.
        anchor: begins all ids in it, and makes them stable.

    Returns:
        the same bytes for the same arguments.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # The salt is to be had by setting only; rc_context puts the reader's own settings back.
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": anchor}):
        figure = Figure(figsize=SIZE, layout="constrained")
        _draw(figure, plot)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _embedded(buffer.getvalue(), plot, anchor)


def _draw(figure: "Figure", plot: Plot) -> None:
    axes = figure.add_subplot()
    # pre: never below the true spend
    drawstyle = "steps-pre" if plot.style == "spend" else "default"
    for index, line in enumerate(plot.lines):
        x, y = zip(*line.points, strict=True)
        few = len(x) <= 40 and plot.style != "spend"
        colour = COLOURS[index % len(COLOURS)]
        marker = "o" if few else ""
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=1.4,
            drawstyle=drawstyle,
            marker=marker,
            markersize=2.6,
            label=_literal(line.label),
        )
    _axes(axes, plot)
    _mark(axes, plot)
    if 1 < len(plot.lines) <= len(COLOURS):
        axes.legend(frameon=False, fontsize=7, labelcolor=INK)


def _axes(axes: "Axes", plot: Plot) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_xlabel(plot.x_label, color=INK, fontsize=8.5, parse_math=False)
    axes.set_ylabel(plot.y_label, color=INK, fontsize=8.5, parse_math=False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b0")
    axes.tick_params(labelsize=8, colors=INK, width=0.6, length=3)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rounding.number(float(value), 8)))
    if plot.style == "profile":
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: rounding.delta(float(value)).removeprefix("1×"))
        )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: rounding.number(float(value), 9))
        )
    if plot.style in ("spend", "profile"):
        axes.set_ylim(bottom=0)


def _mark(axes: "Axes", plot: Plot) -> None:
    if plot.mark is None:
        return
    mark = plot.mark
    axes.set_ylim(top=max(axes.get_ylim()[1], mark.y * 1.2))
    x, y = plot.lines[0].points[-1] if plot.style == "spend" else (mark.x, mark.y)
    axes.plot([x], [y], "o", color=COLOURS[1], markersize=4.5, clip_on=False, zorder=5)
    if plot.style == "spend":
        axes.axhline(mark.y, color=COLOURS[1], linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    # Both curves leave room beside the mark: a spend above it, a falling profile below it on the
    # left.
    left = plot.style == "profile" and _in_left_half(axes, mark.x)
    above = left or plot.style == "spend"
    axes.annotate(
        _literal(mark.label),
        (mark.x, mark.y),
        xytext=(6 if left else -2, 7 if above else -8),
        textcoords="offset points",
        ha="left" if left else "right",
        va="bottom" if above else "top",
        color=COLOURS[1],
        fontsize=8.5,
    )


def _in_left_half(axes: "Axes", x: float) -> bool:
    position = axes.transAxes.inverted().transform(axes.transData.transform((x, 0.0)))[0]
    return bool(position < 0.5)


def _literal(label: str) -> str:
    return label.replace("$", r"\$")  # a dollar would begin a formula


def _embedded(document: str, plot: Plot, anchor: str) -> str:
    """Return the bare element: no prologue, metadata or fixed size, a title and a description."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, count=1, flags=re.DOTALL)
    element = element.replace("xlink:href=", "href=")
    view = re.search(r'viewBox="[^"]*"', element)
    opening = (
        f'<svg {view[0] if view else ""} xmlns="http://www.w3.org/2000/svg" role="img"'
        f' aria-labelledby="{anchor}-title {anchor}-desc">\n'
        f'<title id="{anchor}-title">{escape(plot.title)}</title>\n'
        f'<desc id="{anchor}-desc">{escape(plot.description)}</desc>'
    )
    element = re.sub(r"<svg\b[^>]*>", lambda _: opening, element, count=1)
    # Groups are numbered the same in every figure; ids must differ within a page.
    kept = rf"{re.escape(anchor)}-|[mpc][0-9a-f]{{10}}"
    element = re.sub(rf'\s+id="(?!{kept})[^"]*"', "", element)
    return re.sub(r"[ \t]*\n\s*", "\n", element).strip()
