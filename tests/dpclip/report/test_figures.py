"""Figures: they hold every numeric series, escape what they are told, and load nothing."""

import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from dpclip.report import metrics
from dpclip.report.content import Line, Mark, Plot
from dpclip.report.figures import svg

POINTS = tuple((float(step), 2.0 + step % 3) for step in range(20))
PLOT = Plot("Norm", "What it shows.", "step", "", (Line("norm", POINTS),))


def test_every_numeric_series_is_found_and_words_are_not() -> None:
    records: list[dict[str, Any]] = [
        {
            "step": 1,
            "epsilon": 0.5,
            "norms": [1.0, 2.0],
            "agent": {"reward": 3},
            "note": "text",
            "flag": True,
        },
        {"step": 2, "epsilon": 0.7, "held_out_loss": 4.5, "bad": float("nan")},
    ]
    found = metrics.series(records)
    assert set(found) == {"epsilon", "norms[0]", "norms[1]", "agent reward", "held_out_loss"}
    assert found["epsilon"] == ((1.0, 0.5), (2.0, 0.7))


def test_a_step_recorded_twice_counts_once_with_its_last_value() -> None:
    records = [{"step": 2, "loss": 5.0}, {"step": 1, "loss": 9.0}, {"step": 2, "loss": 4.0}]
    assert metrics.series(records)["loss"] == ((1.0, 9.0), (2.0, 4.0))


def test_series_of_one_stem_share_a_figure_and_held_out_ones_stand_apart() -> None:
    records = [
        {
            "step": 1,
            "threshold_0": 1.0,
            "threshold_1": 2.0,
            "learning_rate": 0.1,
            "held_out_perplexity": 9.0,
        }
    ]
    assert [len(plot.lines) for plot in metrics.plots(records, held_out=False)] == [2, 1]
    assert [plot.title for plot in metrics.plots(records, held_out=True)] == ["Held out perplexity"]


def test_thinning_keeps_both_ends() -> None:
    points = tuple((float(step), 0.0) for step in range(10_001))
    kept = metrics.thinned(points, most=100)
    assert len(kept) == 100
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_figure_is_one_well_formed_element_with_title_and_description() -> None:
    root = ElementTree.fromstring(svg(PLOT, "figure-1"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "figure-1-title figure-1-desc"
    assert [child.text for child in root[:2]] == ["Norm", "What it shows."]


def test_a_figure_loads_nothing_and_stays_small() -> None:
    drawn = svg(PLOT, "figure-1")
    assert re.findall(r"https?://[^\"' ]+", drawn) == ["http://www.w3.org/2000/svg"]
    assert "<script" not in drawn
    assert "<image" not in drawn
    assert len(drawn) < 12_000


def test_the_same_points_give_the_same_bytes_whatever_the_reader_has_set() -> None:
    before = svg(PLOT, "figure-1")
    with matplotlib.rc_context({"svg.hashsalt": None, "svg.fonttype": "path"}):
        assert svg(PLOT, "figure-1") == before
        assert matplotlib.rcParams["svg.fonttype"] == "path"


def test_two_figures_of_a_page_share_no_id() -> None:
    first, second = (
        set(re.findall(r'\bid="([^"]+)"', svg(PLOT, anchor))) for anchor in ("figure-1", "figure-2")
    )
    assert first
    assert not first & second


def test_every_reference_inside_a_figure_is_defined_in_it() -> None:
    drawn = svg(PLOT, "figure-1")
    wanted = set(re.findall(r'(?:href="|url\()#([^")]+)', drawn))
    assert wanted
    assert wanted <= set(re.findall(r'\bid="([^"]+)"', drawn))


@pytest.mark.parametrize("hostile", ["$\\frac{$", "<script>alert(1)</script>", "a & b", '"quoted"'])
def test_hostile_labels_are_shown_as_words(hostile: str) -> None:
    lines = (Line(hostile, POINTS), Line("other", POINTS))
    root = ElementTree.fromstring(svg(Plot(hostile, hostile, hostile, hostile, lines), "figure-1"))
    words = [
        "".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")
    ]
    assert words.count(hostile) == 3  # both axes and the legend
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_a_spend_names_the_level_and_is_drawn_from_above() -> None:
    points = ((0.0, 0.0), (10.0, 3.0), (20.0, 4.0))
    plot = Plot(
        "Spend",
        "",
        "step",
        "ε",
        (Line("ε", points),),
        "spend",
        Mark(20.0, 8.0, "guarantee: ε = 8.00"),
    )
    drawn = svg(plot, "figure-1")
    assert "guarantee: ε = 8.00" in drawn
    line = max(
        re.findall(r'd="([^"]+)"', drawn),
        key=lambda path: path.count("L") if "z" not in path else 0,
    )
    heights = [float(pair.split()[1]) for pair in re.findall(r"[ML] ([\d.]+ [\d.]+)", line)]
    # between two steps the later, larger ε holds
    assert heights[1] == heights[2] == min(heights[:3])
