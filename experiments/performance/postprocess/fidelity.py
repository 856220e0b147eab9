"""dpclip's clippers and optimizers with `match_published=True`, step by step beside the published
code.

usage: python fidelity.py REFERENCES

REFERENCES is a folder with the published zclip.py, autoclip.py, spam.py and stablespam.py
(autoclip's needs the package pytorch-ignite). 300 steps of a small net in float64, gradients ten to
fifty times larger now and then; the largest difference of gradients (clippers) or weights
(optimizers) at any step, relative to the tensor's largest element.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import published
import torch
from published import module
from torch import Tensor, nn

from dpclip.optim import SPAM, StableSPAM
from dpclip.postprocess import AutoClip, ZClip

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import made_by, write_results

STEPS = 300
ZCLIP: tuple[dict[str, Any], ...] = (
    {}, {"max_grad_norm": None}, {"mode": "percentile", "max_grad_norm": None},
    {"clip_option": "mean", "max_grad_norm": 5.0}, {"clip_factor": 0.7, "max_grad_norm": None},
    {"skip_update_on_spike": True, "max_grad_norm": None},
)  # fmt: skip
SPAM_NAMES = {
    "reset_interval": "DeltaT",
    "rewarmup_steps": "warmup_steps",
    "skip_steps": "grad_accu_steps",
}
SPAMS: tuple[dict[str, Any], ...] = (
    {"reset_interval": 50, "rewarmup_steps": 15, "skip_steps": 5},
    {"reset_interval": 50, "rewarmup_steps": 15, "skip_steps": 5, "threshold": 50.0},
    {"weight_decay": 0.1},
)
STABLE_NAMES = {"reset_interval": "update_proj_gap", "total_steps": "total_T"}
STABLES: tuple[dict[str, Any], ...] = (
    {"reset_interval": 40},
    {"reset_interval": 0, "total_steps": 200},
    {"reset_interval": 1000, "gamma1": 0.85, "gamma2": 0.99999, "weight_decay": 0.1},
)


def net() -> nn.Module:
    """Always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def fill(model: nn.Module, step: int) -> None:
    """The step's gradients."""
    draw = torch.Generator().manual_seed(step)
    scale = (50.0 if step % 37 == 20 else 10.0 if step % 23 == 5 else 1.0) * (1 + 0.002 * step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * scale


def apart(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Largest relative difference."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True)
    )


def compare(
    make: Callable[[nn.Module], Callable[[], Any]],
    other: Callable[[nn.Module], Callable[[], Any]],
    read: Callable[[nn.Module], list[Tensor]],
) -> float:
    """Both on the same gradients."""
    one, two = net(), net()
    step_one, step_two, worst = make(one), other(two), 0.0
    for step in range(STEPS):
        fill(one, step)
        fill(two, step)
        step_one()
        with contextlib.redirect_stdout(io.StringIO()):
            step_two()
        worst = max(worst, apart(read(one), read(two)))
    return worst


def gradients(model: nn.Module) -> list[Tensor]:
    """What clippers change."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def weights(model: nn.Module) -> list[Tensor]:
    """What optimizers change."""
    return [p.detach() for p in model.parameters()]


def published_zclip(
    file: ModuleType, settings: dict[str, Any]
) -> Callable[[nn.Module], Callable[[], Any]]:
    """Its `step(model)`."""
    clipper = file.ZClip(**settings)
    return lambda model: lambda: clipper.step(model)


def main(folder: Path) -> None:
    """All of them, into fidelity.json."""
    zclip, autoclip, spam, stable = (
        module(folder, name) for name in ("zclip", "autoclip", "spam", "stablespam")
    )
    found: dict[str, float] = {}
    for chosen in ZCLIP:
        made = compare(
            lambda m, c=chosen: ZClip(m.named_parameters(), match_published=True, **c).step,  # type: ignore[misc]
            published_zclip(zclip, chosen),
            gradients,
        )
        found[f"ZClip {chosen}"] = made
    for percentile in (10, 50, 90):
        mine = lambda m, p=percentile: (  # noqa: E731
            AutoClip(m.named_parameters(), percentile=p, match_published=True).step
        )
        theirs = lambda m, p=percentile: published.autoclip(autoclip, m, p)  # noqa: E731
        found[f"AutoClip {percentile}"] = compare(mine, theirs, gradients)
    quiet = {"no_deprecation_warning": True}
    for name, kind, other, cases, names, more in (
        ("SPAM", SPAM, spam.AdamW, SPAMS, SPAM_NAMES, quiet),
        ("StableSPAM", StableSPAM, stable.StableSPAM, STABLES, STABLE_NAMES, {}),
    ):
        for chosen in cases:
            renamed = {names.get(key, key): value for key, value in chosen.items()} | more
            found[f"{name} {chosen}"] = compare(
                lambda m, k=kind, c=chosen: (
                    k(m.parameters(), lr=0.01, match_published=True, **c).step
                ),  # type: ignore[misc]
                lambda m, t=other, r=renamed: t(m.parameters(), lr=0.01, **r).step,  # type: ignore[misc]
                weights,
            )
    result = {
        **made_by("python fidelity.py REFERENCES", "torch"),
        "steps": STEPS,
        "largest relative difference": found,
    }
    write_results(Path(__file__).with_name("fidelity.json"), result)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
