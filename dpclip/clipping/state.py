"""What a clipping rule or a controller keeps from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Stateful:
    """State that a checkpoint keeps; there is none unless overridden."""

    def metrics(self) -> dict[str, float]:
        """Released or public numbers worth a curve, after each step."""
        return {}

    def public_state(self) -> dict[str, Any]:
        """State that follows from released values, as JSON."""
        return {}

    def load_public_state(self, state: Mapping[str, Any]) -> None:
        """Restore `public_state`."""
        return None

    def tensor_state(self) -> dict[str, Tensor]:
        """State in tensors, kept in private checkpoints only."""
        return {}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `tensor_state`."""
        return None
