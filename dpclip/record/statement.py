"""Compiles `statement.json`: what was promised, how it was computed, what it rests on and what it
leaves out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from accounting import statement as accounts
from accounting import wording
from dpclip.budget.plan import Plan
from dpclip.engine.guarantee import FAST_ARITHMETIC, guarantee_kind
from dpclip.engine.private_training import PrivateTraining
from dpclip.noise.scale import FLOAT_SLACK
from dpclip.record.environment import versions


@dataclass(frozen=True)
class RunFacts:
    """What the statement says of a run besides its accounting; all public.

    Attributes:
        status: "complete", "unfinished" or "budget exhausted".
        data: description of the training and evaluation data.
        model: description of the model.
        evaluation: held-out figures, or None.
        spend: (step, epsilon) pairs of the plan.
        settings: options that bear on the guarantee.
    """

    status: str
    data: dict[str, Any]
    model: dict[str, Any]
    evaluation: dict[str, Any] | None
    spend: list[tuple[int, float]]
    settings: dict[str, Any]


def compile_statement(training: PrivateTraining, facts: RunFacts) -> dict[str, Any]:
    """The whole statement as plain JSON values."""
    plan, engine = training.plan, training.engine
    ledger = engine.ledger
    comparison = ledger.compare()
    kind, assumption = guarantee_kind(engine)
    guarantee = {
        "epsilon": wording.finite(comparison.epsilon),
        "delta": plan.delta,
        "kind": kind,
        "assumption": assumption,
        "adjacency": plan.adjacency,
        "unit": plan.unit,
        "accountant": comparison.accountant,
        "sentence": wording.sentence(
            comparison.epsilon, plan.delta, plan.unit, plan.adjacency, kind, assumption
        ),
    }
    return {
        "schema": wording.STATEMENT_SCHEMA,
        "guarantee": guarantee,
        "run": {
            "status": facts.status,
            "steps_planned": plan.steps,
            "steps_taken": engine.step,
            "steps_charged": ledger.charges,
            "steps_given_up": plan.steps - engine.step if facts.status == "budget exhausted" else 0,
            "target_epsilon": wording.finite(plan.target_epsilon),
        },
        "mechanism": _mechanism(training),
        **accounts.accountants_section(comparison),
        "profile": ledger.profile(),
        "spend": accounts.spend_section(facts.spend),
        "assumptions": _assumptions(training),
        "not_covered": _not_covered(facts),
        "randomness": _randomness(training),
        "data": facts.data,
        "model": facts.model,
        "evaluation": facts.evaluation,
        "settings": facts.settings,
        "versions": versions(),
        "ledger": {"entries": ledger.charges, "head": ledger.head},
    }


def _mechanism(training: PrivateTraining) -> dict[str, Any]:
    plan = training.plan
    return {
        "name": plan.scheme.title if plan.private else "none (no noise)",
        "sampler": plan.scheme.sampler_title,
        "units": plan.units,
        "sample_rate": plan.sample_rate,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "compositions": plan.whole[1],
        "clipping": training.engine.rule.describe(),
        "postprocessing": [clipper.describe() for clipper in training.engine.postprocess],
        "arithmetic": plan.arithmetic,
        "released": "every noisy gradient sum, hence every intermediate model",
        "float_slack": FLOAT_SLACK,
    }


def _assumptions(training: PrivateTraining) -> list[str]:
    plan = training.plan
    found = [
        f"The number of units, N = {plan.units}, is public; the sample rate and delta are derived "
        "from it.",
        plan.scheme.assumption,
        *_of_arithmetic(plan),
        "The folder private/ and the run's secret key stay secret.",
        "The architecture, the tokenizer, the initial weights and all settings were chosen "
        "without looking at the private data.",
    ]
    if training.engine.rule.assumption:
        found.append(
            f"Unchecked, and the guarantee is void without it: {training.engine.rule.assumption}."
        )
    found += [f"Could not be tried: {assumption}." for assumption in training.engine.assumptions]
    if training.engine.key.known:
        found.append(
            "The noise key is known (for tests): whoever has it can remove the noise. A key from "
            "the operating system gives a guarantee that does not depend on this."
        )
    else:
        found.append(
            "Sampling and noise are keyed by 256 bits that the operating system drew for this run "
            "alone; a seed, where one was given, chose the initial weights only and is no secret."
        )
    return found


def _of_arithmetic(plan: Plan) -> list[str]:
    """What the bound on one unit's part in a sum rests on, in floating point."""
    if not plan.private:
        return []
    found = [
        "H1: at the fixed shape of its micro-batches, what is computed of a unit depends on that "
        "unit, the weights and its own secret random numbers alone. Tried on this machine before "
        "the first release, bit for bit.",
        "What is released is exactly the sum with ideal Gaussian noise, rounded to a public grid; "
        "the AES-256 keystream is taken for random bits.",
    ]
    if plan.arithmetic == "fast":
        return [
            *found,
            f"Unchecked: {FAST_ARITHMETIC} (1 + {FLOAT_SLACK:g} times each sensitivity).",
        ]
    return [
        *found,
        "H2: floating point follows IEEE 754, in any order of summation. Each unit's gradient is "
        "rounded to a public grid before it meets another's, and added as integers; where it has "
        "few terms, in float64, which is covered by enlarging every sensitivity by a factor 1 + "
        f"{FLOAT_SLACK:g}.",
    ]


def _not_covered(facts: RunFacts) -> list[str]:
    found = [
        "Data used to pre-train the model, and anything known from other sources.",
        "Choosing settings by training several times on the same data: each run costs its own "
        "epsilon.",
        "Side channels of the training machine: running time, memory, and access to the folder "
        "private/.",
    ]
    evaluation = facts.data.get("evaluation")
    if evaluation:
        found.append(
            f"The held-out data ({evaluation['source']}, {evaluation['declared']}): exact figures "
            "on it are published."
        )
    if "labels" in facts.data["training"]:
        found.append("The set of class names, which is taken as public.")
    return found


def _randomness(training: PrivateTraining) -> dict[str, Any]:
    known = training.engine.key.known
    return {
        "source": "known key (for tests)" if known else "operating system",
        "stream": "AES-256 in counter mode; noise by step, generation, tensor and block",
        "note": "reproducible by anyone who has the key"
        if known
        else "the key never leaves the private folder",
    }


def to_json(statement: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(statement, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
