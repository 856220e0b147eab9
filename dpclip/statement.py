"""Compiles `statement.json`: what was promised, how it was computed, what it rests on and what it leaves out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from accounting import statement as accounts
from dpclip.environment import versions
from dpclip.noise import FLOAT_SLACK
from dpclip.private import PrivateTraining, guarantee_kind


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
        "epsilon": accounts.finite(comparison.epsilon),
        "delta": plan.delta,
        "kind": kind,
        "assumption": assumption,
        "adjacency": plan.adjacency,
        "unit": plan.unit,
        "accountant": comparison.accountant,
        "sentence": accounts.sentence(comparison.epsilon, plan.delta, plan.unit, plan.adjacency, kind, assumption),
    }
    return {
        "schema": accounts.SCHEMA,
        "guarantee": guarantee,
        "run": {
            "status": facts.status,
            "steps_planned": plan.steps,
            "steps_taken": engine.step,
            "steps_charged": ledger.charges,
            "steps_given_up": plan.steps - engine.step if facts.status == "budget exhausted" else 0,
            "target_epsilon": accounts.finite(plan.target_epsilon),
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
        "sampler": plan.scheme.sampler,
        "units": plan.units,
        "sample_rate": plan.sample_rate,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "compositions": plan.whole[1],
        "clipping": training.engine.rule.describe(),
        "postprocessing": [clipper.describe() for clipper in training.engine.postprocess],
        "released": "every noisy gradient sum, hence every intermediate model",
        "float_slack": FLOAT_SLACK,
    }


def _assumptions(training: PrivateTraining) -> list[str]:
    plan = training.plan
    found = [
        f"The number of units, N = {plan.units}, is public; the sample rate and delta are derived from it.",
        plan.scheme.assumption,
        "The noise is Gaussian in real arithmetic; rounding of norms, factors and sums in float32 is covered by "
        f"enlarging every sensitivity by a factor 1 + {FLOAT_SLACK:g}.",
        "The folder private/ and the run's secret key stay secret.",
        "The architecture, the tokenizer, the initial weights and all settings were chosen without looking at the "
        "private data.",
    ]
    if training.engine.rule.assumption:
        found.append(f"Unchecked, and the guarantee is void without it: {training.engine.rule.assumption}.")
    if training.engine.key.seeded:
        found.append(
            "Randomness comes from an explicit seed: whoever knows or guesses it can remove the noise. Use a run "
            "without --seed for a guarantee that does not depend on this."
        )
    return found


def _not_covered(facts: RunFacts) -> list[str]:
    found = [
        "Data used to pre-train the model, and anything known from other sources.",
        "Choosing settings by training several times on the same data: each run costs its own epsilon.",
        "Side channels of the training machine: running time, memory, and access to the folder private/.",
    ]
    evaluation = facts.data.get("evaluation")
    if evaluation:
        found.append(
            f"The held-out data ({evaluation['source']}, {evaluation['declared']}): exact figures on it are published."
        )
    if "labels" in facts.data["training"]:
        found.append("The set of class names, which is taken as public.")
    return found


def _randomness(training: PrivateTraining) -> dict[str, Any]:
    seeded = training.engine.key.seeded
    return {
        "source": "explicit seed" if seeded else "operating system",
        "stream": "AES-256 in counter mode, one stream a step and purpose",
        "note": "reproducible by anyone who has the seed" if seeded else "the key never leaves the private folder",
    }


def to_json(statement: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(statement, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
