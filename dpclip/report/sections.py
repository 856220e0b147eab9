"""The statement as a document: sections in the order in which a privacy officer asks."""

from collections.abc import Callable
from typing import Any

from accounting import odds
from dpclip.report import explanations as facts
from dpclip.report import metrics, rounding, spending
from dpclip.report.content import (
    Block,
    Document,
    Fact,
    Facts,
    Items,
    Paragraph,
    Plots,
    Section,
    Table,
)
from dpclip.report.reading import Metrics, Statement
from dpclip.report.verdict import KINDS, bounded_epsilon, headline, part, records, stated_delta

KNOWN_PARTS = {
    "schema",
    "guarantee",
    "run",
    "mechanism",
    "accountants",
    "agreement",
    "profile",
    "spend",
    "assumptions",
    "not_covered",
    "randomness",
    "data",
    "model",
    "evaluation",
    "versions",
    "ledger",
}
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


def document(statement: Statement, released: Metrics) -> Document:
    """Make the whole report of a run.

    Args:
        statement: from `read_statement`.
        released: from `read_metrics`.

    Returns:
        the sections in their order; entries that no section knows come in one of their own.
    """
    builders: tuple[Callable[[Statement], Section], ...] = (
        guarantee,
        run_and_mechanism,
        accountants,
        profile,
        lambda given: evaluation(given, released),
        assumptions,
        not_covered,
        data_and_model,
        randomness,
        versions,
        ledger,
    )
    sections = tuple(build(statement) for build in builders)
    others = facts.leftovers(statement, KNOWN_PARTS)
    if others:
        intro = "Entries of the statement that this version of the report does not know."
        sections += (Section("other", "Other entries", intro, (Facts(others),)),)
    version = rounding.anything(part(statement, "versions").get("dpclip"))
    schema = rounding.anything(statement.get("schema"))
    footer = (
        f"Made from statement.json (schema {schema}), which dpclip {version} wrote beside this "
        "report."
    )
    return Document(headline(statement), sections, footer)


def _listed(statement: Statement, key: str) -> tuple[str, ...]:
    value = statement.get(key)
    entries = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(rounding.anything(entry) for entry in entries)


def guarantee(statement: Statement) -> Section:
    """ε, δ, unit and adjacency, each with what it means.

    Args:
        statement: its part "guarantee" is shown.
    """
    stated = dict(part(statement, "guarantee"))
    stated.pop("sentence", None)
    assumption = stated.pop("assumption", None)
    lines = []
    for fact in facts.facts(stated, facts.GUARANTEE).facts:
        meaning = {
            "Adjacency": facts.ADJACENCIES.get(str(stated.get("adjacency")), ""),
            "Kind": KINDS.get(str(stated.get("kind")), ""),
        }.get(fact.label, fact.meaning)
        lines.append(Fact(fact.label, fact.value, meaning))
        if fact.label == "Kind" and (assumption or stated.get("kind") == "conditional"):
            lines.append(
                Fact(
                    "Assumption",
                    rounding.anything(assumption),
                    "The guarantee stands or falls with it.",
                )
            )
    intro = "What is promised about every unit of the training data."
    if bounded_epsilon(statement) is None:
        intro = (
            "Nothing is promised: without a finite ε there is no privacy guarantee, whatever else "
            "is stated."
        )
    return Section("guarantee", "The guarantee", intro, (Facts(tuple(lines)),))


def run_and_mechanism(statement: Statement) -> Section:
    """What was done to the data, and how the budget went.

    Args:
        statement: its parts "run", "mechanism" and "spend" are shown.
    """
    blocks: list[Block] = [
        facts.facts(part(statement, "run"), facts.RUN),
        facts.facts(part(statement, "mechanism"), facts.MECHANISM),
        *spending.spend(statement, records(statement, "spend")),
    ]
    intro = "How the training used the data, step by step; ε is computed from these numbers."
    return Section("mechanism", "Run and mechanism", intro, tuple(blocks))


def accountants(statement: Statement) -> Section:
    """Every accountant's interval for ε side by side, and whether they agree.

    Args:
        statement: its parts "accountants" and "agreement" are shown; lower ends are rounded down,
            all else up.
    """
    chosen = part(statement, "guarantee").get("accountant")
    rows, strong = [], set()
    for position, entry in enumerate(records(statement, "accountants")):
        rest = {key: value for key, value in entry.items() if key not in _ACCOUNTANT_KEYS}
        notes = [rounding.anything(given) for given in (entry.get("note"), rest) if given]
        if entry.get("accountant") == chosen:
            strong.add(position)
            notes.insert(0, "gives the guarantee")
        ends = rounding.lower_epsilon(entry.get("lower")), rounding.epsilon(entry.get("estimate"))
        name = rounding.anything(entry.get("accountant"))
        rows.append((name, *ends, rounding.epsilon(entry.get("upper")), "; ".join(notes)))
    columns = ("Accountant", "Lower", "Estimate", "Upper", "Note")
    table = Table(columns, tuple(rows), frozenset({1, 2, 3}), frozenset(strong))
    intro = (
        "Independent methods compute ε for the same mechanism; the true value lies between lower "
        "and upper, and only an upper end is a guarantee."
    )
    return Section("accountants", "Accountants", intro, (_or_nothing(table), _agreement(statement)))


_ACCOUNTANT_KEYS = ("accountant", "lower", "estimate", "upper", "note")


def _agreement(statement: Statement) -> Paragraph:
    agreement = part(statement, "agreement")
    lead = {True: "The accountants agree", False: "The accountants DISAGREE"}
    said = agreement.get("agree")
    spoken = lead[said] if isinstance(said, bool) else "Whether the accountants agree is not stated"
    rest = {key: value for key, value in agreement.items() if key not in ("agree", "reason")}
    words = [rounding.anything(given) for given in (agreement.get("reason"), rest) if given]
    return Paragraph("; ".join(words), f"{spoken}:" if words else f"{spoken}.")


def _or_nothing(table: Table) -> Block:
    return table if table.rows else Paragraph("Not stated.")


def profile(statement: Statement) -> Section:
    """The guarantee at other δ, and what it leaves to a membership test.

    Args:
        statement: its part "profile" is shown.
    """
    entries = records(statement, "profile")
    intro = (
        "One and the same training satisfies a whole family of guarantees: a smaller δ goes with a "
        "larger ε, and all of them hold at once."
    )
    blocks = (*spending.profile(statement, entries), *_membership(statement, entries))
    return Section("profile", "Privacy profile", intro, blocks)


def _membership(statement: Statement, entries: list[dict[str, Any]]) -> tuple[Block, ...]:
    epsilon, delta = bounded_epsilon(statement), stated_delta(statement)
    if epsilon is None or delta is None:
        return ()
    points = [(float(epsilon), float(delta)), *spending.finite_profile(entries)]
    rows = tuple(
        (rounding.percentage(rate), rounding.percentage(odds.true_positive_rate(rate, points)))
        for rate in FALSE_POSITIVE_RATES
    )
    lead = "What is left to a membership test."
    text = (
        "A test that accuses at most the share on the left of units that were not used finds at "
        "most the share on the right of those that were; equal shares would mean it cannot tell "
        "them apart."
    )
    columns = ("Wrongly accused", "Rightly found, at most")
    return Paragraph(text, lead), Table(columns, rows, frozenset({0, 1}))


def evaluation(statement: Statement, released: Metrics) -> Section:
    """What the model is worth, and everything recorded under the guarantee while training.

    Args:
        statement: its part "evaluation" is shown.
        released: drawn, and summed up in a table.
    """
    blocks: list[Block] = []
    if statement.get("evaluation") is None:
        blocks.append(Paragraph("No evaluation is stated."))
    else:
        blocks.append(facts.facts(part(statement, "evaluation"), facts.EVALUATION))
    drawn = metrics.plots(released, held_out=True) + metrics.plots(released, held_out=False)
    if drawn:
        text = (
            "A value computed from the training data left only after noise was added to it; the "
            "others were set beforehand or measured on the evaluation data."
        )
        if bounded_epsilon(statement) is None:
            text = "These values left the training without a privacy guarantee."
        columns = ("Released while training", "Values", "First", "Least", "Greatest", "Last")
        table = Table(columns, metrics.table(released), frozenset(range(1, 6)))
        blocks += [Plots(drawn), Paragraph(text), table]
    intro = "What the trained model achieves, and every value released on the way."
    return Section("evaluation", "Evaluation", intro, tuple(blocks))


def assumptions(statement: Statement) -> Section:
    """What must be true for the guarantee to hold.

    Args:
        statement: its part "assumptions" is listed.
    """
    intro = "The guarantee is a theorem about this run as long as the following is true."
    return Section(
        "assumptions",
        "Assumptions",
        intro,
        (Items(_listed(statement, "assumptions"), "Not stated."),),
    )


def not_covered(statement: Statement) -> Section:
    """What the guarantee says nothing about.

    Args:
        statement: its part "not_covered" is listed.
    """
    intro = "The guarantee says nothing about the following; each needs its own protection."
    return Section(
        "not-covered",
        "Not covered",
        intro,
        (Items(_listed(statement, "not_covered"), "Not stated."),),
    )


def data_and_model(statement: Statement) -> Section:
    """Which data went in, which model came out.

    Args:
        statement: its parts "data" and "model" are shown.
    """
    data = part(statement, "data")
    blocks: list[Block] = [facts.facts(part(data, "training"), facts.TRAINING_DATA)]
    if data.get("evaluation") is None:
        blocks.append(Paragraph("Evaluation data: not stated."))
    else:
        blocks.append(facts.facts(part(data, "evaluation"), facts.EVALUATION_DATA))
    others = facts.leftovers(data, {"training", "evaluation"})
    blocks += [Facts(others)] if others else []
    blocks.append(facts.facts(part(statement, "model"), facts.MODEL))
    intro = "Which data the guarantee protects, and the model they trained."
    return Section("data", "Data and model", intro, tuple(blocks))


def randomness(statement: Statement) -> Section:
    """Where the noise came from.

    Args:
        statement: its part "randomness" is shown.
    """
    intro = "The guarantee needs noise that nobody can predict or recompute."
    blocks = (facts.facts(part(statement, "randomness"), facts.RANDOMNESS),)
    return Section("randomness", "Randomness", intro, blocks)


def versions(statement: Statement) -> Section:
    """The software that ran.

    Args:
        statement: its part "versions" is shown.
    """
    given = part(statement, "versions")
    rows = tuple(
        (rounding.text(name), rounding.anything(version)) for name, version in given.items()
    )
    intro = "The software that trained the model and computed ε."
    return Section(
        "versions", "Versions", intro, (_or_nothing(Table(("Package", "Version"), rows)),)
    )


def ledger(statement: Statement) -> Section:
    """The journal of what was charged.

    Args:
        statement: its part "ledger" is shown.
    """
    intro = (
        "The run's journal, to hold beside this report when checking that nothing was left out of "
        "it."
    )
    return Section(
        "ledger", "Ledger", intro, (facts.facts(part(statement, "ledger"), facts.LEDGER),)
    )
