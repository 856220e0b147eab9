"""What learning rates by kind of layer, a warm-up and the way of clipping change: private runs, one
seed.

usage: OMP_NUM_THREADS=1 python rates.py PREPARED SETTING RULE OUTPUT.json SPEC…

A SPEC multiplies rates: `wte=2,w=0.5`, of the kinds wte and wpe (embeddings), ln (norms), bias and
w (other weights); `all` multiplies all of them, `warm=6` lets the rate rise over six steps; `base`
changes nothing. epsilon = 2.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from grid import settings_of

from dpclip.budget.ledger import Ledger
from dpclip.engine.setup import build_private_training, trainable_parameters
from dpclip.noise.keystream import SecretKey
from dpclip.released import Released, StepRelease
from dpclip.train.job import Job, prepare
from dpclip.train.settings import Settings

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import ResultsFile

KINDS = ("wte", "wpe", "ln", "bias", "w")
SEED = 1


def kind(name: str) -> str:
    """What a GPT-2 parameter is."""
    return next(
        (k for k in ("wte", "wpe", "ln") if k in name), "bias" if name.endswith("bias") else "w"
    )


class Rates:
    """AdamW with a group for each kind of parameter, whose rates are set at each step.

    Args:
        spec: see the module's docstring.
        job: what is trained.
    """

    def __init__(self, spec: str, job: Job) -> None:
        parts = (part.split("=") for part in spec.split(",") if "=" in part)
        self.times = {name: float(value) for name, value in parts}
        self.job, named = job, trainable_parameters(job.loaded.model)
        held = {k: [p for name, p in named.items() if kind(name) == k] for k in KINDS}
        groups = [{"params": held[k], "kind": k} for k in KINDS if held[k]]
        self.optimizer = torch.optim.AdamW(groups, lr=job.peak_learning_rate, weight_decay=0.0)

    def on_step_begin(self, step: int, generation: int) -> None:
        """The usual rate of this step, times what the spec says."""
        rise = min(1.0, (step + 1) / self.times.get("warm", 1.0)) * self.times.get("all", 1.0)
        for group in self.optimizer.param_groups:
            times = rise * self.times.get(group["kind"], 1.0)
            group["lr"] = self.job.learning_rate(step) * times

    def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
        """Nothing to do."""


def run(settings: Settings, spec: str) -> float:
    """Train as the command line does, but for the rates; held-out perplexity."""
    job = prepare(settings, SecretKey.for_tests(SEED))
    rates, model = Rates(spec, job), job.loaded.model.train()
    private = build_private_training(
        model,
        rates.optimizer,
        job.examples,
        job.index,
        plan=job.plan,
        key=job.key,
        ledger=Ledger.create(None, job.plan),
        rule=job.rule,
        grad_sample_mode=settings.grad_sample_mode,
        physical_batch_size=job.physical_batch_size,
        rows_per_unit=settings.rows_per_unit,
        collate=job.task.collate,
        examples=job.public_examples,
        postprocess=job.postprocess,
        recheck=False,
    )
    private.observers.append(rates)
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(job.task.losses(model, batch))
        private.step()
    private.close()
    return job.task.evaluate(model, job.held_out)


def main(prepared: Path, setting: str, rule: str, output: Path, specs: list[str]) -> None:
    """Each spec in turn; results are added to the file."""
    file = ResultsFile(output, [])
    for spec in specs:
        perplexity = run(settings_of(prepared, setting, rule, 2.0, SEED), spec)
        found = {"setting": setting, "rule": rule, "rates": spec, "perplexity": perplexity}
        file.results.append(found)
        file.write()
        print(found, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5:])
