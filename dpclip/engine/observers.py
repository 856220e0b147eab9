"""Who hears of each logical step."""

from __future__ import annotations

from typing import Protocol

from dpclip.released import Released, StepRelease


class StepObserver(Protocol):
    """Told of each logical step, noise-only steps on empty batches included."""

    def on_step_begin(self, step: int, generation: int) -> None:
        """The step was charged; its batch is about to be computed."""
        ...

    def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
        """The step's release has updated the model."""
        ...
