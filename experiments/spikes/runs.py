"""One run of the tiny GPT-2, with gradient spikes put in on purpose.

Model, batches, spikes and validation windows depend on the seed alone, so that the arms of a seed
can be paired.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import loss_of, text, tiny_gpt, validation, windows
from torch import nn

from dpclip.diagnosis.smoothness import SmoothnessProbe
from dpclip.optim import SPAM, StableSPAM
from dpclip.postprocess import GradientClipper, make_postprocessors
from dpclip.postprocess import StableSPAM as Transform

STEPS, BATCH, WARM_UP, EVERY = 360, 8, 20, 20
SMALL = "transformer.ln_f.weight"  # the tensor of card C
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, **kw: torch.optim.SGD(parameters, momentum=0.9, **kw),
    "adam": torch.optim.Adam,
    "spam": SPAM,
    "stable-spam": StableSPAM,
}


@dataclass(frozen=True)
class Spikes:
    """Noise added to the gradient: from step `start` on, in a share `chance` of the steps.

    Attributes:
        size: norm of the noise over that of the gradient; with `small` the norm itself.
        small: noise in one small tensor only.
    """

    start: int
    chance: float
    size: float
    small: bool = False


@dataclass(frozen=True)
class Arm:
    """What is run in one card beside the others.

    Attributes:
        clipper: as `make_postprocessors` reads it.
        spikes: None for none.
        scale: what the loss is multiplied by.
        bits: of the weights of attention and MLP layers; None for float32.
        probe: measure the smoothness along the steps.
        steady: measure how steady the norms are that Stable-SPAM gives to Adam.
    """

    clipper: str
    optimizer: str
    lr: float
    settings: dict[str, Any] = field(default_factory=dict)
    spikes: Spikes | None = None
    scale: float = 1.0
    bits: int | None = None
    probe: bool = False
    steady: bool = False


# --- one run --------------------------------------------------------------------------------------


class Injector:
    """Adds the spikes of a seed to the gradients; the same steps and directions for every arm."""

    def __init__(self, model: nn.Module, spikes: Spikes | None, seed: int) -> None:
        self.named = list(model.named_parameters())
        self.spikes, self.draw = spikes, torch.Generator().manual_seed(1000 + seed)
        self.steps: set[int] = set()
        if spikes is not None:
            hit = torch.rand(STEPS, generator=self.draw) < spikes.chance
            self.steps = {step for step in hit.nonzero().flatten().tolist() if step >= spikes.start}

    def __call__(self, step: int) -> None:
        """After the backward pass of this step."""
        if self.spikes is None or step not in self.steps:
            return
        live = [
            p
            for name, p in self.named
            if p.grad is not None and (not self.spikes.small or name == SMALL)
        ]
        noise = [torch.randn(p.shape, generator=self.draw) for p in live]
        size = (
            self.spikes.size
            if self.spikes.small
            else self.spikes.size * norm_of([p.grad for p in live])
        )
        torch._foreach_add_([p.grad for p in live], noise, alpha=size / norm_of(noise))


class Watch:
    """What the clipper did: on spike steps, on the others, and tensor by tensor."""

    def __init__(self, clipper: GradientClipper | None, injector: Injector) -> None:
        self.clipper, self.injector = clipper, injector
        self.clipped: dict[bool, list[float]] = {True: [], False: []}
        self.hit: list[float] = []
        self.others: list[float] = []
        self.over_usual: list[float] = []

    def clip(self, step: int) -> None:
        """Clip, and note it."""
        if self.clipper is None:
            return
        spike = step in self.injector.steps
        usual = self.clipper.state_dict().get("gamma", {}) if spike else {}
        report = self.clipper.step()
        self.clipped[spike].append(float(report.factor < 1 or report.clipped > 0))
        if spike and report.scales is not None:
            place = self.clipper.names.index(SMALL)
            scales = report.scales.tolist()
            self.hit.append(scales.pop(place))
            self.others.append(statistics.fmean(scales))
            if SMALL in usual:
                after = float(self.injector.named[place][1].grad.norm())  # type: ignore[union-attr]
                self.over_usual.append(after / float(usual[SMALL]))

    def found(self) -> dict[str, float]:
        """Shares of clipped steps; mean factors at spikes of the small tensor and of the others."""
        rows = {
            "clipped at spikes": self.clipped[True],
            "clipped elsewhere": self.clipped[False],
            "factor of the small tensor at spikes": self.hit,
            "factor of the others at spikes": self.others,
        }
        means = {key: round(statistics.fmean(values), 4) for key, values in rows.items() if values}
        return means | (
            {"small tensor over its gamma, largest": max(self.over_usual)}
            if self.over_usual
            else {}
        )


class Shadow:
    """Stable-SPAM's transforms on copies of the gradients: the norms that its Adam is given."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.transform = Transform(self.parameters, total_steps=STEPS)
        self.norms: list[list[float]] = []

    def see(self) -> None:
        """One step."""
        copies = [p.grad.clone() for p in self.parameters]  # type: ignore[union-attr]
        self.transform.clip(copies, list(range(len(copies))))
        self.norms.append([float(copy.norm()) for copy in copies])

    def found(self) -> dict[str, float]:
        """Standard deviation over mean of each tensor's norm from step 30 on."""
        kept = np.array(self.norms[30:])
        spread = kept.std(0) / kept.mean(0)
        largest, median = float(spread.max()), float(np.median(spread))
        return {
            "std/mean of norms, largest": round(largest, 4),
            "std/mean of norms, median": round(median, 4),
        }


def train(arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    """Train and measure one arm."""
    begun = time.process_time()
    model = tiny_gpt(seed, bits=arm.bits)
    rows = windows(text(folder, "train"), STEPS * BATCH, seed).view(STEPS, BATCH, -1)
    held_out = windows(text(folder, "valid"), 512, 500 + seed)
    optimizer = OPTIMIZERS[arm.optimizer](model.parameters(), lr=arm.lr, **arm.settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine)
    clippers = make_postprocessors(arm.clipper)
    for clipper in clippers:
        clipper.bind(model.named_parameters())
    injector = Injector(model, arm.spikes, seed)
    watch = Watch(clippers[0] if clippers else None, injector)
    probe_rows = windows(text(folder, "train"), 32, 700 + seed)
    probe = SmoothnessProbe(lambda: loss_of(model, probe_rows), every=20, module=model)
    if arm.probe:
        probe.attach(optimizer)
    shadow = Shadow(model) if arm.steady else None
    losses, norms, curve = [], [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, rows[step])
        (loss * arm.scale).backward()
        norms.append(norm_of([p.grad for p in model.parameters() if p.grad is not None]))
        injector(step)
        if shadow is not None:
            shadow.see()
        watch.clip(step)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        if (step + 1) % EVERY == 0:
            curve.append(round(validation(model, held_out[:64]), 4))
    if not math.isfinite(losses[-1]):
        return {"loss": None, "diverged at step": len(losses), "curve": curve}
    found = {
        "loss": round(validation(model, held_out), 4),
        "curve": curve,
        **training_curve(losses, norms),
    }
    found |= watch.found()
    if arm.probe:
        found |= smoothness(probe)
    if shadow is not None:
        found |= shadow.found()
    return found | {"cpu_s": round(time.process_time() - begun, 1)}


def warm_up_and_cosine(step: int) -> float:
    """Learning rate over its peak: up in WARM_UP steps, down to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))) / 2


def norm_of(tensors: list[Any]) -> float:
    """Of all together."""
    return float(torch.nn.utils.get_total_norm(tensors))


def training_curve(losses: list[float], norms: list[float]) -> dict[str, float]:
    """Spike score, largest jump of the loss, norms before the spikes are put in.

    The spike score is the share of training losses more than 10 standard deviations away from the
    mean of the 100 before (the papers' runs have 1,000).
    """
    every = np.array(losses)
    before = np.lib.stride_tricks.sliding_window_view(every, 100)[: len(every) - 100]
    outside = np.abs(every[100:] - before.mean(1)) > 10 * before.std(1)
    jumps = [losses[i] - statistics.median(losses[i - 10 : i]) for i in range(60, len(losses))]
    return {
        "spike score, %": round(100 * float(outside.mean()), 2),
        "largest jump": round(max(jumps), 3),
        "median norm": float(f"{statistics.median(norms):.4g}"),
        "largest norm": float(f"{max(norms):.4g}"),
    }


def smoothness(probe: SmoothnessProbe) -> dict[str, float]:
    """Of the second half of training, where the paper looks, and the correlation over all of it."""
    fit = probe.fit()
    later = [record.smoothness for record in probe.records if record.step > STEPS // 2]
    return {
        "smoothness, second half": round(statistics.fmean(later), 4),
        "correlation with the norm": round(fit.log_correlation, 3),
    }
