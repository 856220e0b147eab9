"""What clipping a gradient costs, beside `torch.nn.utils.clip_grad_norm_` and beside the published
implementations.

usage: OMP_NUM_THREADS=1 python measure.py [ROUNDS [REFERENCES]]

A model of GPT-2 124M's shapes. CPU time of one thread in alternating rounds of one process,
quartiles of the ratio; gradients are filled anew, outside the times, with a spike now and then.
REFERENCES is a folder with the published zclip.py, autoclip.py, spam.py and stablespam.py; AdaGC's
is the package pytorch_optimizer's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import torch
from published import module
from torch import Tensor, nn

from dpclip.optim import SPAM, StableSPAM
from dpclip.postprocess import AdaGC, AutoClip, ZClip, make_postprocessors

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import made_by, write_results

BLOCK = [(2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), *[(768,)] * 5]
SHAPES = [(50257, 768), (1024, 768), *BLOCK * 12, (768,), (768,)]
TEXTS = (
    "fixed",
    "normalized",
    "autoclip",
    "autoclip:scope=tensor,window=1000",
    "zclip",
    "adagc:warmup_steps=3",
    "agc",
    "spam:skip_steps=1",
    "stable-spam",
)


class Model(nn.Module):
    """Weights and gradients of the right shapes."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.held = nn.ParameterList(torch.randn(shape, generator=draw) * 0.02 for shape in SHAPES)
        self.kept = [torch.randn(shape, generator=draw) * 1e-4 for shape in SHAPES]

    def fill(self, round_: int) -> None:
        """Gradients of norm about 1, three times that now and then."""
        scale = (3.0 if round_ % 5 == 3 else 1.0) * (1 + 0.01 * (round_ % 7))
        for parameter, values in zip(self.held, self.kept, strict=True):
            parameter.grad = torch.mul(values, scale, out=parameter.grad)


def alternate(
    model: Model, ours: Callable[[], Any], other: Callable[[], Any], rounds: int
) -> dict[str, Any]:
    """Both in turn."""
    times: list[tuple[float, float]] = []
    for index in range(rounds + 3):
        pair = []
        for action in (ours, other):
            model.fill(index)
            start = time.process_time()
            action()
            pair.append(time.process_time() - start)
        times.append((pair[0], pair[1]))
    kept = times[3:]
    ratios = statistics.quantiles([mine / theirs for mine, theirs in kept], n=4)
    mine, theirs = (1e3 * statistics.median(column) for column in zip(*kept, strict=True))
    return {
        "ms": round(mine, 1),
        "other_ms": round(theirs, 1),
        "ratio_quartiles": [round(r, 3) for r in ratios],
    }


def against_torch(model: Model, rounds: int) -> dict[str, Any]:
    """Each clipper beside clip_grad_norm_."""
    found = {}
    parameters = list(model.parameters())
    for text in TEXTS:
        (clipper,) = make_postprocessors(text)
        clipper.bind(model.named_parameters())
        found[text] = alternate(
            model, clipper.step, lambda: nn.utils.clip_grad_norm_(parameters, 1.0), rounds
        )  # fmt: skip
        print(text, found[text], flush=True)
        del clipper
    return found


def against_published(model: Model, folder: Path, rounds: int) -> dict[str, Any]:
    """Clippers beside clippers, optimizers beside optimizers."""
    from pytorch_optimizer import AdaGC as PublishedAdaGC

    named = list(model.named_parameters())
    parameters: list[Tensor] = [p for _, p in named]
    zclip = module(folder, "zclip").ZClip(warmup_steps=3)
    adamw = torch.optim.AdamW(parameters, lr=1e-6, foreach=True)
    adagc = AdaGC(named, lambda_rel=1.05, beta=0.98)

    def clipped_adamw() -> None:
        adagc.step()
        adamw.step()

    cases: dict[str, Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]] = {
        "autoclip": lambda: (
            AutoClip(named).step,
            published.autoclip(module(folder, "autoclip"), model, 10),
        ),
        "zclip": lambda: (ZClip(named, warmup_steps=3).step, lambda: zclip.step(model)),
        "AdaGC with AdamW": lambda: (clipped_adamw, PublishedAdaGC(parameters, lr=1e-6).step),
        "SPAM": lambda: (
            SPAM(parameters, lr=1e-6).step,
            module(folder, "spam").AdamW(parameters, lr=1e-6).step,
        ),
        "Stable-SPAM": lambda: (
            StableSPAM(parameters, lr=1e-6).step,
            module(folder, "stablespam").StableSPAM(parameters, lr=1e-6).step,
        ),
    }
    found = {}
    for name, make in cases.items():
        found[name] = alternate(model, *make(), rounds)
        print("published", name, found[name], flush=True)
        if name == "AdaGC with AdamW":
            adamw.state.clear()
    return found


def main(rounds: int, folder: Path | None) -> None:
    """Everything, into results.json."""
    torch.set_num_threads(1)
    model = Model()
    result: dict[str, Any] = {
        **made_by(f"OMP_NUM_THREADS=1 python measure.py {rounds} REFERENCES", "torch", "numpy"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "over clip_grad_norm_": against_torch(model, rounds),
    }
    if folder is not None:
        result["over the published implementation"] = against_published(
            model, folder, max(5, rounds // 3)
        )
    write_results(Path(__file__).with_name("results.json"), result)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 15,
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
