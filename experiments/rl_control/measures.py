"""What a trained model is good for and what it betrays: choices, membership inference, exposure of
canaries.
"""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path

import torch
from notes import RETURNS
from prepare import read
from scipy.stats import rankdata
from torch import Tensor, nn

from dpclip.losses import causal_lm_tokens
from dpclip.models.loading import load_model
from dpclip.tasks.language_modelling import LanguageModelling
from dpclip.tasks.records import Records
from dpclip.train.job import Job

ALTERNATIVES, CHOICES = 127, 60
# what the public model says of the rows under attack
_BEFORE: dict[tuple[str, str, str], Tensor] = {}


def kind_of(setting: str) -> str:
    """e2e or notes."""
    return setting.split("-")[0]


def records_of(kind: str, rows: list[list[str]]) -> Records:
    """Rows of either data set."""
    if kind == "e2e":
        return Records("rows", inputs=[row[0] for row in rows], targets=[row[1] for row in rows])
    return Records("rows", texts=[row[1] for row in rows])


@torch.no_grad()
def likelihoods(model: nn.Module, job: Job, records: Records, *, mean: bool) -> Tensor:
    """Each record's log-likelihood, or that of a token of it."""
    examples, found = job.task.encode(records), []
    for start in range(0, len(examples), 32):
        batch = job.task.collate(examples[start : start + 32])
        losses, counted = causal_lm_tokens(model, batch)
        total = -losses.double().sum(1)
        found.append(total / counted.sum(1).clamp(min=1) if mean else total)
    return torch.cat(found)


def choice_accuracy(model: nn.Module, job: Job, prepared: Path, setting: str) -> float:
    """E2E: the true description among three of other restaurants. Notes: whether, and how soon, the
    patient came back.

    The second is hard: always saying "no" is right for a little more than half of the notes.
    """
    kind = kind_of(setting)
    rows = read(prepared / f"{kind}_held_out.csv")[1]
    draw, options, answers = random.Random(0), [], []
    for row in rows:
        if len(answers) == CHOICES:
            break
        if kind == "e2e":
            others = draw.sample([r for r in rows if r[0] != row[0]], 3)
            options += [[row[0], row[1]]] + [[row[0], other[1]] for other in others]
            answers.append(0)
        elif any(row[1].endswith(end) for end in RETURNS.values()):
            answers.append(
                next(i for i, end in enumerate(RETURNS.values()) if row[1].endswith(end))
            )
            head = row[1].removesuffix(list(RETURNS.values())[answers[-1]])
            options += [["", head + end] for end in RETURNS.values()]
    scores = likelihoods(model, job, records_of(kind, options), mean=False)
    if kind == "e2e":  # what the restaurant's table adds to a description's own likelihood
        scores -= likelihoods(
            model, job, records_of(kind, [["", target] for _, target in options]), mean=False
        )
    best = scores.view(len(answers), -1).argmax(1)
    return float((best == torch.tensor(answers)).double().mean())


@functools.cache
def untrained(settings_model: str) -> nn.Module:
    """The public model that training began with; its likelihoods calibrate the attack."""
    model = load_model(settings_model, LanguageModelling.head()).model
    model.eval()
    return model


def attacked(model: nn.Module, job: Job, prepared: Path, setting: str) -> dict[str, float]:
    """Area under the curve of a calibrated loss attack on 300 rows inside and 300 outside; mean
    exposure of canaries.

    Exposure is log2(128) less log2 of the true number's rank among 127 random ones (Carlini et al.,
    "The Secret Sharer", 2019); 1.4 bits is what a model shows that has never seen them.
    """
    kind, settings = kind_of(setting), job.settings
    gains = []
    for side in ("inside", "outside"):
        records = records_of(kind, read(prepared / f"{kind}_{side}.csv")[1])
        if (which := (settings.model, kind, side)) not in _BEFORE:
            _BEFORE[which] = likelihoods(untrained(settings.model), job, records, mean=True)
        gains.append(likelihoods(model, job, records, mean=True) - _BEFORE[which])
    ranks = torch.tensor(rankdata(torch.cat(gains).numpy()))[: len(gains[0])]
    inside, outside = len(gains[0]), len(gains[1])
    area = (float(ranks.sum()) - inside * (inside + 1) / 2) / (inside * outside)
    return {"membership": area, "exposure": exposure(model, job, prepared, kind)}


def exposure(model: nn.Module, job: Job, prepared: Path, kind: str) -> float:
    """Mean over the canaries, in bits."""
    known = json.loads((prepared / f"{kind}_canaries.json").read_text())
    draw, bits = random.Random(1), []
    for index, (name, number) in enumerate(zip(known["names"], known["numbers"], strict=True)):
        others = [" ".join(draw.choices("0123456789", k=6)) for _ in range(ALTERNATIVES)]
        source = known["inputs"][index] if known["inputs"] else ""
        rows = [[source, f"{name}: {candidate}"] for candidate in (number, *others)]
        scores = likelihoods(model, job, records_of(kind, rows), mean=False)
        bits.append(math.log2(len(scores)) - math.log2(1 + int((scores[1:] >= scores[0]).sum())))
    return math.fsum(bits) / len(bits)
