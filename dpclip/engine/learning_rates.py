"""Learning rates that differ between groups for one update of any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def multiplied_learning_rates(
    optimizer: torch.optim.Optimizer, by: Mapping[int, float]
) -> Iterator[None]:
    """The optimizer with learning rates multiplied; as it was afterwards, whatever schedule sets
    them.

    Parameter groups are split while this lasts. What an optimizer keeps in a group, such as a count
    of steps, is kept.

    Args:
        optimizer: about to take a step.
        by: multiplier by the parameter's id; 1 where there is none.
    """
    if all(multiplier == 1.0 for multiplier in by.values()):
        yield
        return
    whole = optimizer.param_groups
    parts = [_split(group, by) for group in whole]
    optimizer.param_groups = [part for split in parts for part in split]
    try:
        yield
    finally:
        optimizer.param_groups = whole
        for group, split in zip(whole, parts, strict=True):
            group |= {key: value for key, value in split[0].items() if key not in ("params", "lr")}


def _split(group: dict[str, Any], by: Mapping[int, float]) -> list[dict[str, Any]]:
    """One part of the group for each multiplier, in the order of the parameters."""
    found: dict[float, list[Any]] = {}
    for parameter in group["params"]:
        found.setdefault(by.get(id(parameter), 1.0), []).append(parameter)
    parts = [
        {**group, "params": params, "lr": group["lr"] * times} for times, params in found.items()
    ]
    return parts or [group]  # a group may be empty
