"""The criteria of the cards and what the papers' claims are held against: numbers by seed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import markdown_table

Runs = dict[str, Any]
SCALES = ("0.01", "1", "100")


def loss(runs: Runs, card: str, arm: str, seed: int) -> float:
    """Validation loss at the end; infinity where training diverged."""
    value = runs[f"{card}|{arm}|{seed}"]["loss"]
    return math.inf if value is None else value


def part(runs: Runs, card: str, arm: str, seed: int, key: str) -> float:
    """Another number of that run."""
    return runs[f"{card}|{arm}|{seed}"][key]


def judged(runs: Runs, seeds: list[int]) -> list[dict[str, Any]]:
    """One row a criterion: it holds if its number is within the limit for every seed."""

    def gain(card: str, worse: str, better: str) -> Callable[[int], float]:
        return lambda seed: loss(runs, card, worse, seed) - loss(runs, card, better, seed)

    def autoclip(seed: int) -> list[float]:
        return [loss(runs, "A", f"AutoClip 10, loss × {s}", seed) for s in SCALES]

    def least_gain(seed: int) -> float:
        return min(
            loss(runs, "A", f"none, loss × {s}", seed) - a
            for s, a in zip(SCALES, autoclip(seed), strict=True)
        )

    def share(card: str, arm: str, key: str) -> Callable[[int], float]:
        return lambda seed: part(runs, card, arm, seed, key)

    others = "factor of the others at spikes"
    rows: list[tuple[str, str, str, float, Callable[[int], float]]] = [
        (
            "A",
            "AutoClip's losses at three scales differ by",
            "≤",
            0.01,
            lambda s: max(autoclip(s)) - min(autoclip(s)),
        ),
        ("A", "AutoClip below none, least of three scales", "≥", 0.1, least_gain),
        (
            "A",
            "fixed 1, loss × 0.01, from none",
            "≤",
            0.02,
            lambda s: abs(gain("A", "none, loss × 0.01", "fixed 1, loss × 0.01")(s)),
        ),
        ("B", "ZClip below none", "≥", 0.05, gain("B", "none", "ZClip")),
        ("B", "ZClip below fixed 1", "≥", 0.05, gain("B", "fixed 1", "ZClip")),
        ("B", "ZClip above the run without spikes", "≤", 0.05, gain("B", "ZClip", "no spikes")),
        (
            "B",
            "without spikes: ZClip from none",
            "≤",
            0.02,
            lambda s: abs(gain("B", "no spikes, ZClip", "no spikes")(s)),
        ),
        (
            "B",
            "without spikes: share of steps clipped",
            "≤",
            0.05,
            share("B", "no spikes, ZClip", "clipped elsewhere"),
        ),
        ("C", "AdaGC 1.04/.99 below fixed 40", "≥", 0.15, gain("C", "fixed 40", "AdaGC 1.04/.99")),
        ("C", "AdaGC 1.04/.99 below none", "≥", 0.15, gain("C", "none", "AdaGC 1.04/.99")),
        (
            "C",
            "small tensor after AdaGC, over its γ, largest",
            "≤",
            1.04001,
            share("C", "AdaGC 1.04/.99", "small tensor over its gamma, largest"),
        ),
        (
            "C",
            "factor of the other tensors at spikes, AdaGC over ZClip",
            "≥",
            1.0,
            lambda s: (
                part(runs, "C", "AdaGC 1.04/.99", s, others) / part(runs, "C", "ZClip", s, others)
            ),
        ),
        (
            "C",
            "without spikes: AdaGC above none",
            "≤",
            0.06,
            gain("C", "no spikes, AdaGC 1.04/.99", "no spikes"),
        ),
        ("D", "Stable-SPAM below Adam", "≥", 0.1, gain("D", "Adam", "Stable-SPAM")),
        (
            "D",
            "Stable-SPAM below Adam, fixed 1, loss × 0.01",
            "≥",
            0.1,
            gain("D", "Adam, fixed 1, loss × 0.01", "Stable-SPAM"),
        ),
        (
            "D",
            "Stable-SPAM above Adam without spikes",
            "≤",
            0.06,
            gain("D", "Stable-SPAM", "no spikes, Adam"),
        ),
        (
            "D",
            "resets: above no resets",
            "≤",
            0.06,
            gain("D", "Stable-SPAM, resets", "Stable-SPAM"),
        ),
        (
            "D",
            "std/mean of a tensor's norm entering Adam, largest",
            "≤",
            0.2,
            share("D", "Stable-SPAM", "std/mean of norms, largest"),
        ),
        ("E", "SPAM below Adam", "≥", 0.15, gain("E", "Adam", "SPAM")),
        ("E", "Stable-SPAM below Adam", "≥", 0.05, gain("E", "Adam", "Stable-SPAM")),
    ]
    found = []
    for card, what, relation, limit, number in rows:
        values = [round(number(seed), 4) for seed in seeds]
        good = [v <= limit if relation == "≤" else v >= limit for v in values]
        found.append(
            {
                "card": card,
                "what": what,
                "limit": f"{relation} {limit:g}",
                "by seed": values,
                "holds": all(good),
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    found = [
        [
            row["card"],
            row["what"],
            row["limit"],
            ", ".join(f"{v:.4g}" for v in row["by seed"]),
            "holds" if row["holds"] else "**fails**",
        ]
        for row in rows
    ]
    return markdown_table(["card", "criterion", "limit", "seeds 0, 1, 2", ""], found)


# --- what the claims are held against -------------------------------------------------------------


def measured(runs: Runs, seeds: list[int]) -> dict[str, list[float | None]]:
    """Numbers by seed that have no limit; None for one that is not finite."""

    def each(number: Callable[[int], float]) -> list[float | None]:
        values = [number(seed) for seed in seeds]
        return [round(value, 4) if math.isfinite(value) else None for value in values]

    def apart(card: str, first: str, second: str) -> list[float | None]:
        return each(lambda s: loss(runs, card, first, s) - loss(runs, card, second, s))

    def ratio(card: str, first: str, second: str) -> list[float | None]:
        return each(
            lambda s: 100 * math.expm1(loss(runs, card, first, s) - loss(runs, card, second, s))
        )

    calm = ("no spikes, Stable-SPAM", "no spikes, Adam")

    def steps(card: str, fast: str, slow: str) -> list[float | None]:
        return each(
            lambda s: time_saved(
                runs[f"{card}|{fast}|{s}"]["curve"], runs[f"{card}|{slow}|{s}"]["curve"]
            )
        )

    return {
        "A: no spikes, AutoClip - none": apart("A", "no spikes, AutoClip 10", "no spikes"),
        **{
            f"A: AutoClip {p} - fixed 1": apart("A", f"AutoClip {p}", "fixed 1, loss × 1")
            for p in (1, 50, 90)
        },
        "A: AutoClip 10 - fixed 1": apart("A", "AutoClip 10, loss × 1", "fixed 1, loss × 1"),
        **{
            f"S: {arm}, {key}": each(lambda s, arm=arm, key=key: part(runs, "S", arm, s, key))
            for arm in ("none", "AutoClip 10")
            for key in ("smoothness, second half", "correlation with the norm")
        },
        "B: ZClip, share of the steps of fixed 1": steps("B", "ZClip", "fixed 1"),
        "B: no spikes, ZClip, share of the steps of none": steps(
            "B", "no spikes, ZClip", "no spikes"
        ),
        "C: AdaGC over fixed, perplexity, %": ratio("C", "AdaGC 1.04/.99", "fixed 40"),
        "C: AdaGC over ZClip, perplexity, %": ratio("C", "AdaGC 1.04/.99", "ZClip"),
        **{
            f"C: spike score, {arm}, %": each(
                lambda s, arm=arm: part(runs, "C", arm, s, "spike score, %")
            )
            for arm in ("none", "fixed 40", "ZClip", "AdaGC 1.04/.99", "AdaGC 1.05/.98")
        },
        **{
            f"D: no spikes, Stable-SPAM 4 bits - {arm}": apart(
                "D", "no spikes, Stable-SPAM", f"no spikes, {arm}"
            )
            for arm in (
                "Adam, 32 bits",
                "Adam at 0.005, 32 bits",
                "Adam at 0.02, 32 bits",
                "Adam at 0.005, beta2 0.95, 32 bits",
                "Stable-SPAM, 32 bits",
                "Stable-SPAM, steady beta1",
            )
        },
        **{
            f"D: {arm}, std/mean of norms entering Adam, {which}": each(
                lambda s, arm=arm, which=which: part(
                    runs, "D", arm, s, f"std/mean of norms, {which}"
                )
            )
            for arm in ("no spikes, Stable-SPAM", "Stable-SPAM")
            for which in ("median", "largest")
        },
        "D: no spikes, Stable-SPAM - Adam, 4 bits": apart(
            "D", "no spikes, Stable-SPAM", "no spikes, Adam"
        ),
        "D: no spikes, Adam 4 bits - 32 bits": apart(
            "D", "no spikes, Adam", "no spikes, Adam, 32 bits"
        ),
        "D: no spikes, Stable-SPAM, share of the steps of Adam": steps("D", *calm),
        "D: Stable-SPAM - Adam, fixed 1": apart("D", "Stable-SPAM", "Adam, fixed 1"),
        "D: SPAM - Adam": apart("D", "SPAM", "Adam"),
        "E: no spikes, SPAM - Adam": apart("E", "no spikes, SPAM", "no spikes, Adam"),
        "E: SPAM - Adam, fixed 1": apart("E", "SPAM", "Adam, fixed 1"),
        "E: SPAM, threshold 50 - SPAM": apart("E", "SPAM, threshold 50", "SPAM"),
        "H: Adam, ZClip - none": apart("H", "Adam, ZClip, at most 1", "Adam, none"),
        "H: Adam, AdaGC - none": apart("H", "Adam, AdaGC", "Adam, none"),
        "E: no spikes, largest norm over median": each(
            lambda s: (
                part(runs, "E", calm[1], s, "largest norm")
                / part(runs, "E", calm[1], s, "median norm")
            )
        ),
        "C: Adam, AdaGC - none": apart("C", "Adam, AdaGC 1.04/.99", "Adam, none"),
        "C: Adam, AdaGC - ZClip": apart("C", "Adam, AdaGC 1.04/.99", "Adam, ZClip"),
        "C: Adam, no spikes, AdaGC - none": each(
            lambda s: (
                loss(runs, "C", "Adam, no spikes, AdaGC 1.04/.99", s)
                - loss(runs, "E", "no spikes, Adam", s)
            )
        ),
    }


def time_saved(fast: list[float], slow: list[float]) -> float:
    """Steps that `fast` takes to the best loss of `slow`, over the steps that `slow` takes;
    infinity if never.
    """
    goal = min(slow)
    reached = [index for index, value in enumerate(fast) if value <= goal]
    return (reached[0] + 1) / (slow.index(goal) + 1) if reached else math.inf
