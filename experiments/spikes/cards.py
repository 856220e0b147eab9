"""Does each adaptive clipper do on a tiny GPT-2 what its paper says?

usage: python cards.py WIKITEXT2_DIR [SEEDS]    runs what results.json lacks, then writes the
criteria; figure.py draws them

Cards: A AutoClip, B ZClip, C AdaGC, D Stable-SPAM in 4 bits, E SPAM, H rates that are too high, S
smoothness.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from criteria import judged, measured, table
from runs import STEPS, Arm, Spikes, train

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import RunsFile, made_by

HERE = Path(__file__).parent
SCALES = (0.01, 1.0, 100.0)


def card_a() -> dict[str, Arm]:
    """AutoClip under three scales of the loss."""
    plain = Arm("none", "adam", 3e-3, {"eps": 1e-12})
    spiked = replace(plain, spikes=Spikes(60, 0.05, 50))
    arms = {"no spikes": plain, "no spikes, AutoClip 10": replace(plain, clipper="autoclip")}
    for name, clipper in (("none", "none"), ("fixed 1", "fixed"), ("AutoClip 10", "autoclip")):
        arms |= {f"{name}, loss × {s:g}": replace(spiked, clipper=clipper, scale=s) for s in SCALES}
    return arms | {
        f"AutoClip {p}": replace(spiked, clipper=f"autoclip:percentile={p}") for p in (1, 50, 90)
    }


def card_b() -> dict[str, Arm]:
    """ZClip where norms are far below the usual fixed threshold."""
    plain = Arm("none", "sgd", 0.7, scale=0.1)
    spiked = replace(plain, spikes=Spikes(60, 0.05, 45))
    zclip = "zclip:max_grad_norm=none"
    return {
        "no spikes": plain, "no spikes, ZClip": replace(plain, clipper=zclip), "none": spiked,
        "fixed 1": replace(spiked, clipper="fixed"), "ZClip": replace(spiked, clipper=zclip),
        "ZClip, at most 1": replace(spiked, clipper="zclip:max_grad_norm=1"),
        "AutoClip 90": replace(spiked, clipper="autoclip:percentile=90"),
    }  # fmt: skip


def card_c() -> dict[str, Arm]:
    """AdaGC and spikes of one small tensor; with Adam, too."""
    plain = Arm("none", "sgd", 0.07)
    spiked = replace(plain, spikes=Spikes(110, 0.1, 40.0, small=True))
    newer, older = "adagc:lambda_abs=40", "adagc:lambda_abs=40,lambda_rel=1.05,beta=0.98"
    adam = Arm("none", "adam", 3e-3, spikes=Spikes(110, 0.1, 10.0, small=True))
    clippers = {
        "none": "none", "fixed 10": "fixed:max_grad_norm=10", "ZClip": "zclip:max_grad_norm=none",
        "AdaGC 1.04/.99": "adagc:lambda_abs=10",
    }  # fmt: skip
    return {
        "no spikes": plain,
        "no spikes, AdaGC 1.04/.99": replace(plain, clipper=newer),
        "none": spiked,
        "fixed 40": replace(spiked, clipper="fixed:max_grad_norm=40"),
        "ZClip": replace(spiked, clipper="zclip:max_grad_norm=none"),
        "AdaGC 1.04/.99": replace(spiked, clipper=newer),
        "AdaGC 1.05/.98": replace(spiked, clipper=older),
        **{f"Adam, {name}": replace(adam, clipper=clipper) for name, clipper in clippers.items()},
        "Adam, no spikes, AdaGC 1.04/.99": replace(
            adam, clipper="adagc:lambda_abs=10", spikes=None
        ),
    }


def card_d() -> dict[str, Arm]:
    """Weights of 4 bits."""
    plain = Arm("none", "adam", 1e-2, bits=4)
    stable = replace(
        plain, optimizer="stable-spam", settings={"total_steps": STEPS, "reset_interval": 0}
    )
    spikes = Spikes(30, 0.03, 100)
    spiked = replace(plain, spikes=spikes)
    spam = {"reset_interval": 50, "rewarmup_steps": 15, "skip_steps": 5}
    return {
        "no spikes, Adam, 32 bits": replace(plain, bits=None),
        "no spikes, Adam at 0.005, 32 bits": replace(plain, bits=None, lr=5e-3),
        "no spikes, Adam at 0.02, 32 bits": replace(plain, bits=None, lr=2e-2),
        "no spikes, Adam at 0.005, beta2 0.95, 32 bits": replace(
            plain, bits=None, lr=5e-3, settings={"betas": (0.9, 0.95)}
        ),
        "no spikes, Stable-SPAM, 32 bits": replace(stable, bits=None),
        "no spikes, Adam": plain, "no spikes, Stable-SPAM": replace(stable, steady=True),
        "no spikes, Stable-SPAM, steady beta1": replace(stable, settings={"reset_interval": 0}),
         "Adam": spiked, "Adam, fixed 1": replace(spiked, clipper="fixed"),
        "Adam, fixed 1, loss × 0.01": replace(spiked, clipper="fixed", scale=0.01),
        "SPAM": replace(spiked, optimizer="spam", settings=spam),
        "Stable-SPAM": replace(stable, spikes=spikes, steady=True),
        "Stable-SPAM, resets": replace(stable, spikes=spikes, settings={"reset_interval": 100}),
    }  # fmt: skip


def card_e() -> dict[str, Arm]:
    """Spikes of a thousand times the norm."""
    plain = Arm("none", "adam", 3e-3)
    spiked = replace(plain, spikes=Spikes(30, 0.03, 1000))
    spam = {"reset_interval": 50, "rewarmup_steps": 15, "skip_steps": 5}
    return {
        "no spikes, Adam": plain,
        "no spikes, SPAM": replace(plain, optimizer="spam", settings=spam),
        "Adam": spiked,
        "Adam, fixed 1": replace(spiked, clipper="fixed"),
        "SPAM": replace(spiked, optimizer="spam", settings=spam),
        "SPAM, threshold 50": replace(
            spiked, optimizer="spam", settings=spam | {"threshold": 50.0}
        ),
        "Stable-SPAM": replace(spiked, optimizer="stable-spam"),
    }


def card_h() -> dict[str, Arm]:
    """Learning rates that are too high; nothing is put in."""
    clippers = {
        "none": "none",
        "fixed 1": "fixed",
        "ZClip": "zclip:max_grad_norm=none",
        "ZClip, at most 1": "zclip",
        "AdaGC": "adagc",
        "AutoClip 10": "autoclip",
    }
    arms = {f"SGD, {name}": Arm(clipper, "sgd", 1.0) for name, clipper in clippers.items()}
    return arms | {
        f"Adam, {name}": Arm(clippers[name], "adam", 3e-2)
        for name in ("none", "ZClip, at most 1", "AdaGC")
    }


def card_s() -> dict[str, Arm]:
    """Smoothness along the way, no spikes."""
    plain = Arm("none", "adam", 3e-3, {"eps": 1e-12}, probe=True)
    return {"none": plain, "AutoClip 10": replace(plain, clipper="autoclip")}


CARDS = {
    "A": card_a(),
    "B": card_b(),
    "C": card_c(),
    "D": card_d(),
    "E": card_e(),
    "H": card_h(),
    "S": card_s(),
}


def main(folder: Path, seeds: list[int]) -> None:
    """All runs, seeds outermost."""
    torch.set_num_threads(1)
    command = "python experiments/spikes/cards.py WIKITEXT2_DIR"
    made = made_by(command, "torch", "transformers", "numpy")
    file = RunsFile(HERE / "results.json", made | {"seeds": seeds})
    for seed in seeds:
        for card, arms in CARDS.items():
            for name, arm in arms.items():
                file.add(f"{card}|{name}|{seed}", train, arm, seed, folder)
    order = [
        f"{card}|{name}|{seed}" for card, arms in CARDS.items() for name in arms for seed in seeds
    ]
    runs = {key: file.runs[key] for key in order}
    criteria, numbers = judged(runs, seeds), measured(runs, seeds)
    file.results |= {"runs": runs, "criteria": criteria, "measured": numbers}
    file.write()
    print(table(criteria), *numbers.items(), sep="\n")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        [int(s) for s in sys.argv[2].split(",")] if len(sys.argv) > 2 else [0, 1, 2],
    )
