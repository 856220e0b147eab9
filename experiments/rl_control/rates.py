"""What learning rates by kind of layer, a warm-up and the way of clipping change: private runs, one
seed.

usage: OMP_NUM_THREADS=1 python rates.py PREPARED SETTING RULE OUTPUT.json SPEC…

A SPEC multiplies rates: `wte=2,w=0.5`, of the kinds wte and wpe (embeddings), ln (norms), bias and
w (other weights); `all` multiplies all of them, `warm=6` lets the rate rise over six steps; `base`
changes nothing. epsilon = 2.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from grid import Quiet, settings_of

from dpclip.engine.setup import trainable_parameters
from dpclip.train import run as training

KINDS = ("wte", "wpe", "ln", "bias", "w")


def kind(name: str) -> str:
    """What a GPT-2 parameter is."""
    return next(
        (k for k in ("wte", "wpe", "ln") if k in name), "bias" if name.endswith("bias") else "w"
    )


class Rates:
    """Splits the optimizer's parameters by kind, and sets their rates at each step."""

    def __init__(self, spec: str) -> None:
        parts = (part.split("=") for part in spec.split(",") if "=" in part)
        self.times = {name: float(value) for name, value in parts}
        self.build_private_training = training._assemble

    def assembled(self, job: Any, *rest: Any) -> Any:
        """In place of `training._assemble`."""
        made = self.build_private_training(job, *rest)
        optimizer, named = made.engine.optimizer, trainable_parameters(job.loaded.model)
        whole = optimizer.param_groups[0]
        held = {k: [p for name, p in named.items() if kind(name) == k] for k in KINDS}
        optimizer.param_groups[:] = [
            {**whole, "params": ps, "kind": k} for k, ps in held.items() if ps
        ]
        return made

    def on_step_begin(self, run: Any, step: int, generation: int) -> None:
        """In place of `_Run.on_step_begin`."""
        torch.manual_seed(run.job.key.integer("dropout", step, generation))
        rise = min(1.0, (step + 1) / self.times.get("warm", 1.0)) * self.times.get("all", 1.0)
        for group in run.training.engine.optimizer.param_groups:
            group["lr"] = (
                training.learning_rate(run.job, step) * rise * self.times.get(group["kind"], 1.0)
            )


def main(prepared: Path, setting: str, rule: str, output: Path, specs: list[str]) -> None:
    """Each spec in turn; results are added to the file."""
    plain = training._assemble, training._Run.on_step_begin
    for spec in specs:
        rates, listener = Rates(spec), Quiet()
        training._assemble = rates.assembled  # type: ignore[assignment]
        training._Run.on_step_begin = lambda run, step, generation, r=rates: r.on_step_begin(
            run, step, generation
        )  # type: ignore[assignment, method-assign, misc]
        with tempfile.TemporaryDirectory() as folder:
            settings = settings_of(prepared, setting, rule, 2.0, 1).changed(eval_every=8)
            outcome = training.start(settings, Path(folder) / "run", listener)
        training._assemble, training._Run.on_step_begin = plain  # type: ignore[method-assign]
        found = json.loads(output.read_text()) if output.exists() else []
        found.append({"setting": setting, "rule": rule, "rates": spec, "perplexity": outcome.after})
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(found[-1], flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5:])
