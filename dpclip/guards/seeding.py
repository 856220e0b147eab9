"""All of a process's random numbers for a while, whoever draws them.

Dropout and whatever else a model or a collate function draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Dice:
    """What became of random numbers since they were seeded.

    Args:
        seed: that torch was seeded with.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._begun, self._others = self._states(), self._elsewhere()

    def thrown(self) -> bool:
        """Whether torch, NumPy or Python has drawn one."""
        pairs = zip(self._states(), self._begun, strict=True)
        return (
            any(not torch.equal(now, then) for now, then in pairs)
            or self._elsewhere() != self._others
        )

    def loaded(self) -> bool:
        """Whether torch was seeded again."""
        return torch.initial_seed() != self._seed

    @staticmethod
    def _states() -> list[torch.Tensor]:
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return [torch.get_rng_state(), *devices]

    @staticmethod
    def _elsewhere() -> tuple[object, ...]:
        state = np.random.get_state(legacy=False)  # noqa: NPY002
        return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]


@contextmanager
def seeded(seed: int) -> Iterator[Dice]:
    """Seed torch on every device, NumPy and Python; on exit they go on where they were.

    Args:
        seed: at least 0, below 2^63.

    Returns:
        a context that gives the dice, which know whether a number was drawn.
    """
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002
        try:
            yield Dice(seed)
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
