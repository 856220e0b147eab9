"""The top of the report: the guarantee in a sentence, what not to overlook, what it means."""

from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal
from typing import Any

from accounting import odds
from accounting.wording import NOT_STATED
from dpclip.report import rounding
from dpclip.report.content import Headline, Level, Notice
from dpclip.report.reading import Statement

KINDS = {
    "worst-case": (
        "It holds for every possible training data set and whatever an onlooker knows or computes."
    ),
    "filter budget": (
        "The noise was chosen while training; ε is the budget fixed in advance, which the run"
        " could not exceed."
    ),
    "conditional": "It holds only if the stated assumption does; nothing is promised otherwise.",
}


def part(statement: Statement, key: str) -> dict[str, Any]:
    """Return a part of the statement as a dict, empty where the statement has none.

    Args:
        statement: or a part of it.
        key: of the part.
    """
    value = statement.get(key)
    return value if isinstance(value, dict) else {}


def records(statement: Statement, key: str) -> list[dict[str, Any]]:
    """Return the well-formed entries of a list of the statement.

    Args:
        statement: or a part of it.
        key: of the list; what is no list has no entries.
    """
    value = statement.get(key)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def bounded_epsilon(statement: Statement) -> Decimal | None:
    """Return the stated ε where it is a guarantee at all.

    Args:
        statement: from `read_statement`.

    Returns:
        ε in [0, ∞), exactly as stated; None for anything else.
    """
    value = rounding.exact(part(statement, "guarantee").get("epsilon"))
    return value if value is not None and value.is_finite() and value >= 0 else None


def stated_delta(statement: Statement) -> Decimal | None:
    """Return the stated δ where it is a probability below 1.

    Args:
        statement: from `read_statement`.

    Returns:
        δ in [0, 1), exactly as stated; None for anything else.
    """
    value = rounding.exact(part(statement, "guarantee").get("delta"))
    return value if value is not None and 0 <= value < 1 else None


def notices(statement: Statement) -> tuple[Notice, ...]:
    """Collect everything that a hasty reader must not miss, the gravest first.

    Args:
        statement: from `read_statement`.
    """
    found = (
        _about_epsilon,
        _about_contradiction,
        _about_kind,
        _about_status,
        _about_delta,
        _about_agreement,
        _about_randomness,
    )
    return tuple(notice for look in found for notice in look(statement))


def _about_epsilon(statement: Statement) -> Iterator[Notice]:
    epsilon = rounding.exact(part(statement, "guarantee").get("epsilon"))
    if epsilon is not None and epsilon == Decimal("Infinity"):
        yield Notice(
            "danger",
            "No privacy guarantee",
            "ε is infinite (∞): differential privacy promises nothing about what this model "
            "reveals of its training data. Treat the model as confidential as the data themselves.",
        )
    elif bounded_epsilon(statement) is None:
        yield Notice(
            "danger",
            "No privacy guarantee",
            "The statement gives no usable ε, so no privacy guarantee can be read from this "
            "report.",
        )


def _about_contradiction(statement: Statement) -> Iterator[Notice]:
    promised, chosen = bounded_epsilon(statement), part(statement, "guarantee").get("accountant")
    if promised is None:
        return
    claim = f"ε = {rounding.epsilon(float(promised))} is claimed, but by the accountant"
    for entry in records(statement, "accountants"):
        level: Level = "danger" if entry.get("accountant") == chosen else "warning"
        reached, end = entry.get("lower"), "cannot be below"
        if level == "danger" and entry.get("upper") is not None:
            reached, end = entry.get("upper"), "is only known to be at most"
        value = rounding.exact(reached)
        if value is not None and value > promised * Decimal("1.000000001"):
            text = (
                f"{claim} {rounding.anything(entry.get('accountant'))} it {end} "
                f"{rounding.epsilon(reached)}."
            )
            yield Notice(level, "The figures contradict each other", text)


def _about_kind(statement: Statement) -> Iterator[Notice]:
    guarantee = part(statement, "guarantee")
    kind, assumption = guarantee.get("kind"), rounding.anything(guarantee.get("assumption"))
    if kind == "conditional":
        yield Notice(
            "danger",
            "Conditional guarantee",
            f"It holds only if this assumption does, and promises nothing otherwise: {assumption}",
        )
    elif not isinstance(kind, str) or kind not in KINDS:
        yield Notice(
            "warning",
            "Unknown kind of guarantee",
            f"The kind of the guarantee is {rounding.anything(kind)}; do not take it for a "
            "worst-case one.",
        )


def _about_status(statement: Statement) -> Iterator[Notice]:
    run = part(statement, "run")
    status = run.get("status")
    if status == "complete":
        return
    taken, planned, charged = (
        rounding.anything(run.get(key)) for key in ("steps_taken", "steps_planned", "steps_charged")
    )
    steps = f"{taken} of {planned} planned steps were taken, {charged} were charged"
    if status == "budget exhausted":
        text = f"The run stopped early because its privacy budget was used up: {steps}."
        yield Notice("warning", "Budget exhausted", text)
        return
    title = {"unfinished": "Unfinished run", "None": "Status not stated"}.get(
        str(status), "Run not complete"
    )
    spelled = (
        "" if status in ("unfinished", None) else f" (its status: {rounding.anything(status)})"
    )
    yield Notice(
        "warning",
        title,
        f"This run is not known to be complete{spelled}: {steps}. The figures describe it as it "
        "stood when the statement was written; continuing it spends more privacy.",
    )


def _about_delta(statement: Statement) -> Iterator[Notice]:
    delta = stated_delta(statement)
    units = rounding.exact(part(statement, "mechanism").get("units"))
    if delta is None:
        if bounded_epsilon(statement) is not None:
            yield Notice("danger", "δ is not stated", "An ε without a δ below 1 is no guarantee.")
    elif units is not None and units > 0 and delta * units >= 1:
        yield Notice(
            "warning",
            "δ is too large",
            f"δ = {rounding.delta(float(delta))} is not below 1 in {rounding.number(int(units))}, "
            "the number of protected units: even publishing one of them outright could meet such "
            "a δ.",
        )


def _about_agreement(statement: Statement) -> Iterator[Notice]:
    agreement = part(statement, "agreement")
    if agreement.get("agree") is False:
        reason = rounding.anything(agreement.get("reason"))
        yield Notice("warning", "The accountants disagree", f"Reason given: {reason}")


def _about_randomness(statement: Statement) -> Iterator[Notice]:
    source = part(statement, "randomness").get("source")
    if source is not None and source != "operating system":
        yield Notice(
            "warning",
            f"Randomness from {rounding.anything(source)}",
            "Whoever has the key or guesses the seed can recompute the noise and take it away "
            "again. The guarantee holds only against those who cannot.",
        )


def sentence(statement: Statement) -> str:
    """Say the guarantee in one sentence, the statement's own where it has one.

    Args:
        statement: from `read_statement`; without ε and δ the sentence says that nothing is
            guaranteed.
    """
    guarantee = part(statement, "guarantee")
    if guarantee.get("sentence"):
        return rounding.text(guarantee["sentence"])
    if bounded_epsilon(statement) is None or stated_delta(statement) is None:
        return "The statement contains no guarantee."
    return (
        f"The training is ({rounding.epsilon(guarantee['epsilon'])}, "
        f"{rounding.delta(guarantee['delta'])})-differentially private."
    )


def meaning(statement: Statement) -> tuple[str, ...]:
    """Say in plain sentences what may be concluded.

    Args:
        statement: from `read_statement`.

    Returns:
        paragraphs; none when there is no guarantee.
    """
    epsilon, delta = bounded_epsilon(statement), stated_delta(statement)
    if epsilon is None or delta is None:
        return ()
    guarantee = part(statement, "guarantee")
    unit = rounding.anything(guarantee.get("unit"))
    condition = (
        "Provided the assumption holds: take" if guarantee.get("kind") == "conditional" else "Take"
    )
    guess = rounding.percentage(odds.best_guess(float(epsilon), float(delta)))
    return (
        f"{condition} any one protected unit ({unit}) and start from even odds that it was used. "
        "Nobody, even knowing all the other units, can tell from what was released whether it "
        f"was, with odds better than {_odds(epsilon)} to 1 (e to the power of ε), except with "
        f"probability δ = {rounding.delta(float(delta))}. Put as a guess: right at most {guess} "
        "of the time, where tossing a coin is right 50% of the time.",
        _strength(epsilon),
        "Not hidden: whatever the model would have learnt just as well without that unit. Someone "
        "behind several units is protected less: for k units, count with an ε up to k times as "
        "large and a larger δ.",
    )


def _odds(epsilon: Decimal) -> str:
    if epsilon > 1_000_000:
        return f"e^{rounding.epsilon(float(epsilon))}"  # more digits than decimal arithmetic has
    value = odds.exact_odds(epsilon)
    if value < 1_000_000:
        return f"{rounding.significant(value, 3, ROUND_CEILING):,f}"
    return rounding.power(value, 3, ROUND_CEILING)


def _strength(epsilon: Decimal) -> str:
    if epsilon <= 1:
        verdict = "is at most 1, the range regarded as strong protection"
    elif epsilon <= 10:
        verdict = "lies between 1 and 10, the range regarded as reasonable, not strong, protection"
    else:
        verdict = "is above 10, where the guarantee alone is weak and other evidence is needed"
    return (
        f"As a rule of thumb (Ponomareva et al. 2023, “How to DP-fy ML”), this ε {verdict}. It is "
        "a bound for the worst case: it says how much could be revealed at most, not how much is."
    )


def headline(statement: Statement) -> Headline:
    """Make the top of the report.

    Args:
        statement: from `read_statement`.
    """
    guarantee, bounded = part(statement, "guarantee"), bounded_epsilon(statement) is not None
    model = rounding.anything(part(statement, "model").get("name"))
    data = part(part(statement, "data"), "training").get("source")
    return Headline(
        subtitle=f"Model {model}, trained on {rounding.anything(data)}",
        sentence=sentence(statement),
        epsilon=rounding.epsilon(guarantee.get("epsilon")) if bounded else "∞",
        delta=rounding.delta(guarantee.get("delta")) if bounded else NOT_STATED,
        kind=rounding.anything(guarantee.get("kind")) if bounded else "no privacy guarantee",
        notices=notices(statement),
        meaning=meaning(statement),
    )
