"""Do clippers of the batch's gradient help after privacy noise?

usage: python after_noise.py WIKITEXT2_DIR    runs what after_noise.json lacks, prints the table

A tiny GPT-2 of width 32 from random weights, one unit = one window of 64 bytes, DP-AdamW by
`dpclip.make_private`. Sample, noise, weights and validation windows depend on the seed alone, so
that differences to "none" are paired.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny import text, tiny_gpt, validation, windows
from torch.nn import functional

import dpclip
from dpclip.clipping import Flat, StepRelease
from dpclip.noise.keystream import SecretKey
from dpclip.postprocess import make_postprocessors
from dpclip.released import Released

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import RunsFile, made_by, markdown_table

HERE = Path(__file__).parent
SEEDS, UNITS, WIDTH, DELTA = (0, 1, 2), 4096, 32, 1e-5
STUDENT = 4.303  # 97.5 % point, 2 degrees of freedom
CLIPPERS = {
    "none": "none", "fixed": "fixed", "autoclip": "autoclip", "zclip": "zclip:warmup_steps=15",
    "adagc": "adagc:warmup_steps=15", "agc": "agc", "spam": "spam", "stable-spam": "stable-spam",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Budget, sizes, learning rate, and the clippers that are tried."""

    epsilon: float
    batch: int
    steps: int
    rate: float = 1e-2
    arms: tuple[str, ...] = tuple(CLIPPERS)

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        other = f", rate {self.rate:g}" if self.rate != 1e-2 else ""
        return f"ε = {self.epsilon:g}, B = {self.batch}{other}"


SETTINGS = (
    Setting(0.5, 16, 50),
    Setting(2.0, 64, 50),
    Setting(8.0, 64, 50),
    Setting(32.0, 256, 30),
)
SETTINGS += tuple(
    Setting(8.0, 64, 50, rate, ("none", "agc", "stable-spam")) for rate in (2e-2, 4e-2)
)


@dataclass
class Norms:
    """Keeps the norms of what the steps released, before the clipper."""

    values: list[float] = field(default_factory=list)

    def on_step_begin(self, step: int, generation: int) -> None:
        """Nothing to do."""

    def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
        """One logical step."""
        self.values.append(math.sqrt(sum(float(g.square().sum()) for g in released.value.gradient)))


def run(setting: Setting, clipper: str, seed: int, folder: Path) -> dict[str, Any]:
    """One private training."""
    begun = time.process_time()
    model = tiny_gpt(seed, WIDTH)
    rows = windows(text(folder, "train"), UNITS, seed)
    held_out = windows(text(folder, "valid"), 512, 500 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.rate)
    clippers = make_postprocessors(clipper)
    private = dpclip.make_private(
        model,
        optimizer,
        rows,
        target_epsilon=setting.epsilon,
        target_delta=DELTA,
        steps=setting.steps,
        expected_batch_size=setting.batch,
        physical_batch_size=64,
        clipping=Flat(1.0),
        postprocess=clippers,
        key=SecretKey.for_tests(seed),
    )
    norms, clipped, factors, done = Norms(), [], [], 0
    private.observers.append(norms)
    for batch in private.batches():
        with private.microbatch(batch):
            logits = model(input_ids=batch[:, :-1]).logits
            losses = functional.cross_entropy(
                logits.transpose(1, 2), batch[:, 1:], reduction="none"
            )
            private.backward(losses.mean(1))
        private.step()
        if clippers and len(norms.values) > done:
            done = len(norms.values)
            seen = clippers[0].metrics()
            clipped.append(float(seen[f"{clippers[0].name}_clipped"] > 0))
            factors.append(seen[f"{clippers[0].name}_factor"])
    sigma = private.plan.noise_multiplier
    private.close()
    size = sum(p.numel() for p in model.parameters())
    later = norms.values[10:]
    return {
        "loss": round(validation(model, held_out), 4),
        "sigma": round(sigma, 4),
        "B/sigma": round(setting.batch / sigma, 1),
        "norm": round(statistics.fmean(later), 4),
        "noise norm": round(math.sqrt(size) * sigma / setting.batch, 4),
        "variation of the norm": round(statistics.stdev(later) / statistics.fmean(later), 5),
        "1/sqrt(2d)": round(1 / math.sqrt(2 * size), 5),
        "1.9 d^¼": round(1.9 * size**0.25, 1),
        "clipped": round(sum(clipped) / setting.steps, 3),
        "smallest factor": round(min(factors, default=1.0), 4),
        "cpu_s": round(time.process_time() - begun, 1),
    }


def paired(runs: dict[str, Any], setting: Setting, arm: str) -> tuple[float, float]:
    """Mean difference to "none", and half the width of its 95 % interval."""
    differences = [
        runs[f"{setting.key}|{arm}|{seed}"]["loss"] - runs[f"{setting.key}|none|{seed}"]["loss"]
        for seed in SEEDS
    ]
    return statistics.fmean(differences), STUDENT * statistics.stdev(differences) / math.sqrt(
        len(differences)
    )


def table(runs: dict[str, Any]) -> str:
    """Markdown: difference in loss ± 95 % interval, share of steps in which something was
    clipped.
    """
    rows = []
    for title, key in (
        ("validation loss of none", "loss"), ("B/σ", "B/sigma"),
        ("norm released", "norm"), ("norm of the noise", "noise norm"),
        ("variation of the norm", "variation of the norm"), ("1/√(2d)", "1/sqrt(2d)"),
    ):  # fmt: skip
        cells = [
            statistics.fmean(runs[f"{s.key}|none|{seed}"][key] for seed in SEEDS) for s in SETTINGS
        ]
        rows.append([title, *(f"{cell:.4g}" for cell in cells)])
    for arm in list(CLIPPERS)[1:]:
        row = [arm]
        for setting in SETTINGS:
            if arm not in setting.arms:
                row.append("—")
                continue
            mean, half = paired(runs, setting, arm)
            share = statistics.fmean(
                runs[f"{setting.key}|{arm}|{seed}"]["clipped"] for seed in SEEDS
            )
            row.append(f"{mean:+.4f} ± {half:.4f} ({100 * share:.0f} %)")
        rows.append(row)
    return markdown_table(["", *(s.key for s in SETTINGS)], rows)


def main(folder: Path) -> None:
    """All runs, seeds outermost."""
    torch.set_num_threads(1)
    command = "python experiments/spikes/after_noise.py WIKITEXT2_DIR"
    settings = {
        "units": UNITS,
        "width": WIDTH,
        "delta": DELTA,
        "seeds": SEEDS,
        "clippers": CLIPPERS,
    }
    made = made_by(command, "torch", "transformers") | {"settings": settings}
    file = RunsFile(HERE / "after_noise.json", made)
    for seed in SEEDS:
        for setting in SETTINGS:
            for arm in setting.arms:
                file.add(f"{setting.key}|{arm}|{seed}", run, setting, CLIPPERS[arm], seed, folder)
    print(table(file.runs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
