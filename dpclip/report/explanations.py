"""The statement's fields as lines of facts: what each is called, how it is shown, what it means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpclip.report import rounding
from dpclip.report.content import Fact, Facts

Show = Callable[[object], str]


@dataclass(frozen=True)
class Known:
    """A field of the statement that the report knows how to explain."""

    key: str
    label: str
    meaning: str = ""
    show: Show = rounding.anything


GUARANTEE = (
    Known(
        "epsilon",
        "ε (epsilon)",
        "How much any one unit can change what is released, at most; 0 would reveal nothing, "
        "smaller is stronger. Rounded up.",
        rounding.epsilon,
    ),
    Known(
        "delta",
        "δ (delta)",
        "The small probability with which the bound ε may fail; it should be well below 1 divided "
        "by the number of units.",
        rounding.delta,
    ),
    Known(
        "unit",
        "Unit of protection",
        "What counts as one: its presence or absence is what is hidden.",
    ),
    Known("adjacency", "Adjacency"),
    Known("kind", "Kind"),
    Known("accountant", "Accountant", "The method that computed this ε from the mechanism below."),
)
ADJACENCIES = {
    "add-remove": (
        "The guarantee compares training data with the same data after adding or removing a unit."
    ),
    "replace-one": (
        "The guarantee compares training data with the same data after one unit is exchanged for "
        "another."
    ),
}
RUN = (
    Known("status", "Status"),
    Known("steps_planned", "Steps planned", "Fixed before training began."),
    Known("steps_taken", "Steps taken", "Updates of the model that were made."),
    Known("steps_charged", "Steps charged", "Counted in ε, each before its data were drawn."),
    Known(
        "steps_given_up", "Steps given up", "Planned but not taken, because the budget was used up."
    ),
)
MECHANISM = (
    Known(
        "name",
        "Mechanism",
        "Each step adds up clipped per-unit gradients and adds Gaussian noise to the sum.",
    ),
    Known(
        "sampler",
        "Sampler",
        "How each step draws its units; Poisson: every unit by its own independent coin.",
    ),
    Known("units", "Units", "How many protected units the training data hold."),
    Known(
        "sample_rate",
        "Sample rate",
        "The probability that a given unit is drawn in a given step. Rounded up.",
        lambda value: rounding.rounded_up(value, 6),
    ),
    Known("expected_batch_size", "Expected batch size", "Units drawn in a step on average."),
    Known(
        "noise_multiplier",
        "Noise multiplier",
        "Standard deviation of the noise in multiples of what one unit can change; larger is more "
        "private. Rounded down.",
        rounding.noise_multiplier,
    ),
    Known(
        "compositions",
        "Compositions",
        "How many releases of this mechanism the whole plan counts in ε.",
    ),
    Known("clipping", "Clipping", "The rule that bounds what one unit can change in a step."),
    Known(
        "postprocessing",
        "Post-processing",
        "What is done to a gradient after the noise was added; it costs no privacy.",
        lambda value: rounding.anything(value) if value else "none",
    ),
    Known(
        "arithmetic",
        "Arithmetic",
        "exact: one unit's share is bounded as computed; fast: as in real numbers.",
    ),
    Known("released", "Released", "What an onlooker may see in full: ε already counts it."),
    Known(
        "float_slack",
        "Floating-point slack",
        "Share added to what one unit can change, for rounding in the arithmetic. Rounded up.",
        lambda value: rounding.rounded_up(value, 3),
    ),
)
TRAINING_DATA = (
    Known("source", "Training data"),
    Known("rows", "Rows"),
    Known("units", "Units", "What the rows amount to in units of protection."),
    Known("truncation", "Truncation", "What was cut off before training."),
)
EVALUATION_DATA = (
    Known("source", "Evaluation data"),
    Known("rows", "Rows"),
    Known(
        "declared",
        "Declared",
        "How the person who ran the training described these data; not verified.",
    ),
)
MODEL = (
    Known("name", "Model"),
    Known("parameters", "Parameters"),
    Known(
        "trainable_parameters",
        "Trained parameters",
        "Only these were changed by the training data.",
    ),
    Known(
        "lora_rank",
        "LoRA rank",
        "Set when small added matrices were trained in place of the model's own.",
    ),
)
EVALUATION = (
    Known("metric", "Metric"),
    Known("before", "Before training"),
    Known("after", "After training"),
    Known(
        "declared", "Evaluation data declared", "Figures measured on public data cost no privacy."
    ),
)
RANDOMNESS = (
    Known("source", "Source", "Where the key of noise and sampling came from."),
    Known("stream", "Stream", "The generator that turned the key into noise and samples."),
    Known("note", "Note"),
)
LEDGER = (
    Known("entries", "Entries", "Charges written, each before its step drew data."),
    Known(
        "head",
        "Head",
        "Hash of the last entry, chained over all before it: it changes if any entry does.",
    ),
)


def facts(record: Mapping[str, Any], known: tuple[Known, ...]) -> Facts:
    """Explain the known fields in their order, then show every other field as it stands.

    Args:
        record: a part of the statement.
        known: fields to explain; one that is missing is said not to be stated.
    """
    explained = tuple(
        Fact(field.label, field.show(record.get(field.key)), field.meaning) for field in known
    )
    return Facts(explained + leftovers(record, {field.key for field in known}))


def leftovers(record: Mapping[str, Any], seen: set[str]) -> tuple[Fact, ...]:
    """Show fields that this version does not know, so that nothing stated goes unseen.

    Args:
        record: a part of the statement.
        seen: keys that are shown elsewhere.
    """
    return tuple(
        Fact(rounding.name(key).capitalize(), rounding.anything(value))
        for key, value in record.items()
        if key not in seen
    )
