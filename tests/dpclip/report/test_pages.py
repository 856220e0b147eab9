"""The report itself: complete, escaped, loud where it must be, the same bytes every time."""

import copy
import html.parser
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpclip import report
from dpclip.report import rounding

STATEMENT: dict[str, Any] = {
    "schema": 1,
    "guarantee": {
        "epsilon": 7.9701,
        "delta": 1e-5,
        "kind": "worst-case",
        "assumption": None,
        "adjacency": "add-remove",
        "unit": "one letter of the archive",
        "accountant": "prv",
        "sentence": "The training is (7.98, 1e-05)-differentially private.",
    },
    "run": {
        "status": "complete",
        "steps_planned": 61,
        "steps_taken": 62,
        "steps_charged": 63,
        "steps_given_up": 2,
    },
    "mechanism": {
        "name": "Poisson-subsampled Gaussian",
        "sampler": "Poisson sampler",
        "units": 4096,
        "sample_rate": 0.0625,
        "expected_batch_size": 256,
        "noise_multiplier": 0.83219,
        "clipping": {"rule": "flat", "max_grad_norm": 1.25},
        "released": "every noisy gradient sum",
        "float_slack": 0.0009765625,
    },
    "accountants": [
        {"accountant": "rdp", "lower": None, "estimate": None, "upper": 8.6101, "note": "order 4"},
        {"accountant": "prv", "lower": 7.9512, "estimate": 7.9611, "upper": 7.9701, "note": ""},
    ],
    "agreement": {"agree": True, "reason": "the intervals overlap"},
    "profile": [{"delta": 1e-4, "epsilon": 7.101}, {"delta": 3e-7, "epsilon": 9.2201}],
    "spend": [
        {"step": 0, "epsilon": 0.0},
        {"step": 17, "epsilon": 3.2001},
        {"step": 60, "epsilon": 7.9701},
    ],
    "assumptions": ["rows are people", "the noise is unknown"],
    "not_covered": ["the choice of the learning rate"],
    "randomness": {"source": "operating system", "stream": "AES-256-CTR", "note": "two streams"},
    "data": {
        "training": {
            "source": "letters.csv",
            "rows": 4097,
            "units": 4098,
            "truncation": "128 tokens",
        },
        "evaluation": {"source": "held.csv", "rows": 512, "declared": "public data"},
    },
    "model": {
        "name": "builtin",
        "parameters": 1750000,
        "trainable_parameters": 1650000,
        "lora_rank": 8,
    },
    "evaluation": {
        "metric": "perplexity",
        "before": 210.3,
        "after": 31.2,
        "declared": "public since 1999",
    },
    "versions": {"dpclip": "0.1.0", "torch": "2.13.0"},
    "ledger": {"entries": 64, "head": "9f86d081884c7d65"},
}
METRICS = [
    {"step": step, "released_gradient_norm": 0.8 + step, "learning_rate": 1e-3}
    for step in range(1, 13)
]
METRICS += [{"step": 10, "held_out_perplexity": 55.125}]


def change(**parts: Any) -> dict[str, Any]:
    statement = copy.deepcopy(STATEMENT)
    for key, value in parts.items():
        statement[key] = {**statement[key], **value} if isinstance(value, dict) else value
    return statement


def folder(
    root: Path, statement: dict[str, Any], metrics: list[dict[str, Any]] | None = None
) -> Path:
    (root / "public").mkdir(exist_ok=True)
    (root / "public" / "statement.json").write_text(json.dumps(statement), encoding="utf-8")
    if metrics is not None:
        lines = "".join(json.dumps(record) + "\n" for record in metrics)
        (root / "public" / "released_metrics.jsonl").write_text(lines, encoding="utf-8")
    return root


class Words(html.parser.HTMLParser):
    """The text of a page outside its style, and the tags it uses."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.styled = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.styled = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self.styled:
            self.parts.append(data)


def read(page: str) -> Words:
    words = Words()
    words.feed(page)
    return words


def page_text(page: str) -> str:
    return " ".join(" ".join(read(page).parts).split())


def plain_markdown(text: str) -> str:
    return (
        re.sub(r"\\(.)", r"\1", text)
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
    )


def first_paragraph(markdown: str) -> str:
    return plain_markdown(markdown.split("\n\n")[1])


EXPECTED = {
    "epsilon": "7.98",
    "delta": "1×10⁻⁵",
    "noise_multiplier": "0.8321",
    "float_slack": "0.000977",
    "agree": "The accountants agree",
}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


@pytest.mark.parametrize("format", ["md", "html"])
def test_every_field_of_the_statement_is_shown(tmp_path: Path, format: report.Format) -> None:
    text = report.render(folder(tmp_path, STATEMENT, METRICS), format)
    words = page_text(text) if format == "html" else plain_markdown(text)
    shown = {"lower": rounding.lower_epsilon, "delta": rounding.delta}
    shown |= dict.fromkeys(("epsilon", "estimate", "upper"), rounding.epsilon)
    for key, value in leaves(STATEMENT):
        if value not in (None, ""):
            spelled = (
                shown[key](value) if key in shown else EXPECTED.get(key) or rounding.anything(value)
            )
            assert spelled in words, (key, value)


@pytest.mark.parametrize("format", ["md", "html"])
def test_fields_of_unknown_name_are_shown_too(tmp_path: Path, format: report.Format) -> None:
    statement = change(guarantee={"order_used": 4.5}, data={"public": "none"})
    statement["audit"] = {"lower_bound": 1.5}
    text = report.render(folder(tmp_path, statement), format)
    assert "Order used" in text
    assert "lower bound: 1.5" in text


def test_markdown_begins_with_the_guarantee_and_keeps_its_order(tmp_path: Path) -> None:
    text = report.render(folder(tmp_path, STATEMENT, METRICS), "md")
    assert text.startswith(
        "# Privacy statement\n\n**The training is (7.98, 1e-05)-differentially private.**\n"
    )
    titles = re.findall(r"^## (.*)", text, flags=re.MULTILINE)
    wanted = (
        "The guarantee,Run and mechanism,Accountants,Privacy profile,Evaluation,Assumptions,Not "
        "covered"
    )
    assert ",".join(titles[1:]) == wanted + ",Data and model,Randomness,Versions,Ledger"


def test_every_markdown_table_row_has_the_cells_of_its_head(tmp_path: Path) -> None:
    statement = change(data={"training": {"source": "a|b\nc"}})
    blocks = report.render(folder(tmp_path, statement, METRICS), "md").split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) > 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1


def test_the_meaning_states_the_odds(tmp_path: Path) -> None:
    statement = change(guarantee={"epsilon": 1.0, "delta": 1e-5})
    text = plain_markdown(report.render(folder(tmp_path, statement), "md"))
    assert "2.72 to 1" in text  # e, rounded up
    assert "right at most 73.11% of the time" in text  # (e + 1e-5) / (e + 1) = 0.731061…
    assert "regarded as strong protection" in text


@pytest.mark.parametrize("format", ["md", "html"])
def test_a_conditional_guarantee_leads_with_its_assumption(
    tmp_path: Path, format: report.Format
) -> None:
    statement = change(guarantee={"kind": "conditional", "assumption": "the error stays bounded"})
    text = report.render(folder(tmp_path, statement), format)
    if format == "md":
        opening = first_paragraph(text)
        assert opening.startswith("**CONDITIONAL GUARANTEE.**")
        assert "the error stays bounded" in opening
    else:
        words = page_text(text)
        assert (
            words.index("Conditional guarantee")
            < words.index("the error stays bounded")
            < words.index("7.98,")
        )
        assert 'class="notice danger"' in text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("unfinished", "UNFINISHED RUN"),
        ("budget exhausted", "BUDGET EXHAUSTED"),
        ("odd", "RUN NOT COMPLETE"),
        (["odd"], "RUN NOT COMPLETE"),
        (None, "STATUS NOT STATED"),
    ],
)
def test_a_run_that_is_not_complete_says_so_first(tmp_path: Path, status: Any, said: str) -> None:
    run = folder(tmp_path, change(run={"status": status}))
    opening = first_paragraph(report.render(run, "md"))
    assert opening.startswith(f"**{said}.**")
    assert "62 of 61 planned steps were taken, 63 were charged" in opening
    assert said.capitalize() in page_text(report.render(run, "html"))


@pytest.mark.parametrize("epsilon", ["inf", None, -1.0, "unknown", float("nan")])
def test_without_a_finite_epsilon_there_is_no_guarantee(tmp_path: Path, epsilon: object) -> None:
    run = folder(tmp_path, change(guarantee={"epsilon": epsilon}), METRICS)
    assert first_paragraph(report.render(run, "md")).startswith("**NO PRIVACY GUARANTEE.**")
    page = report.render(run, "html")
    assert "No privacy guarantee" in page
    assert "odds better than" not in page
    assert "left the training without a privacy guarantee" in page
    assert '<span class="kind">no privacy guarantee</span>' in page


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"guarantee": {"delta": None}}, "δ IS NOT STATED"),
        ({"guarantee": {"delta": 1e-3}}, "Δ IS TOO LARGE"),
        ({"guarantee": {"kind": "planned"}}, "UNKNOWN KIND OF GUARANTEE"),
        (
            {"accountants": [{"accountant": "prv", "upper": 7.99}]},
            "THE FIGURES CONTRADICT EACH OTHER",
        ),
        (
            {"accountants": [{"accountant": "other", "lower": "inf"}]},
            "THE FIGURES CONTRADICT EACH OTHER",
        ),
        ({"agreement": {"agree": False, "reason": "a gap of 2"}}, "THE ACCOUNTANTS DISAGREE"),
        ({"randomness": {"source": "explicit seed"}}, "RANDOMNESS FROM EXPLICIT SEED"),
    ],
)
def test_other_doubts_stand_before_the_guarantee(
    tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    opening = first_paragraph(report.render(folder(tmp_path, change(**parts)), "md"))
    assert f"**{said}.**".upper() in opening.upper()
    assert opening.endswith("**The training is (7.98, 1e-05)-differentially private.**")


def test_a_worst_case_guarantee_of_a_complete_run_carries_no_warning(tmp_path: Path) -> None:
    assert 'class="notice' not in report.render(folder(tmp_path, STATEMENT, METRICS), "html")


@pytest.mark.parametrize("key", list(STATEMENT))
@pytest.mark.parametrize("value", [None, [], {}, "odd", 3])
def test_any_missing_or_malformed_part_still_gives_a_report(
    tmp_path: Path, key: str, value: object
) -> None:
    statement = {**STATEMENT, key: value, "schema": 1}
    assert "not stated" in report.render(folder(tmp_path, statement), "md").lower()


def test_an_empty_statement_promises_nothing(tmp_path: Path) -> None:
    run = folder(tmp_path, {})
    assert "The statement contains no guarantee." in first_paragraph(report.render(run, "md"))
    assert "No privacy guarantee" in report.render(run, "html")


HOSTILE = "<script>alert('x')</script> **b** [l](javascript:x) `c` | $\\frac{ & \u202etxt"


@pytest.mark.parametrize("place", ["source", "sentence", "assumption", "item", "package", "metric"])
def test_hostile_words_stay_words(tmp_path: Path, place: str) -> None:
    parts: dict[str, dict[str, Any]] = {
        "source": {"data": {"training": {"source": HOSTILE}}},
        "sentence": {"guarantee": {"sentence": HOSTILE}},
        "assumption": {"guarantee": {"kind": "conditional", "assumption": HOSTILE}},
        "item": {"assumptions": [HOSTILE]},
        "package": {"versions": {HOSTILE: HOSTILE}},
        "metric": {},
    }
    metrics = (
        [{"step": step, HOSTILE: step, HOSTILE + "[1]": 2.0} for step in range(3)]
        if place == "metric"
        else []
    )
    run = folder(tmp_path, change(**parts[place]), metrics)
    page, text = report.render(run, "html"), report.render(run, "md")
    assert "script" not in read(page).tags
    assert "<script>alert('x')</script> **b** [l](javascript:x) `c` | $\\frac{ & �txt" in page_text(
        page
    )
    assert "<script" not in text
    assert r"\*\*b\*\* \[l\](javascript:x) \`c\` \|" in text


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = report.render(folder(tmp_path, STATEMENT, METRICS), "html")
    assert set(re.findall(r"https?:[^\"'\s<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read(page).tags)
    assert not re.search(r"@import|url\((?!#)|\bsrc=", page)


def test_the_page_draws_spend_profile_and_every_metric(tmp_path: Path) -> None:
    page = report.render(folder(tmp_path, STATEMENT, METRICS), "html")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    wanted = [
        "Privacy spent",
        "ε for each δ",
        "Held out perplexity",
        "Released gradient norm",
        "Learning rate",
    ]
    assert captions == wanted
    assert page.count('role="img"') == page.count("<desc") == len(captions)
    identities = re.findall(r'\bid="([^"]+)"', page)
    assert len(identities) == len(set(identities))


def test_without_curves_there_are_no_figures(tmp_path: Path) -> None:
    statement = change()
    statement["spend"], statement["profile"] = [], [{"delta": 1e-5, "epsilon": "inf"}]
    assert "<figure>" not in report.render(folder(tmp_path, statement), "html")


@pytest.mark.parametrize("format", report.FORMATS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, format: report.Format) -> None:
    run = folder(tmp_path, STATEMENT, METRICS)
    assert report.render(run, format) == report.render(run, format)
