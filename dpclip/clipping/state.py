"""What a clipping rule or a controller keeps from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Stateful:
    """State that a checkpoint keeps; there is none unless overridden."""

    def metrics(self) -> dict[str, float]:
        """Return released or public numbers worth a curve, after each step."""
        return {}

    def public_state(self) -> dict[str, Any]:
        """Return the state that follows from released values, as JSON."""
        return {}

    def load_public_state(self, state: Mapping[str, Any]) -> None:
        """Restore `public_state`.

        Args:
            state: what `public_state` returned, after a round trip through JSON.
        """
        return None

    def tensor_state(self) -> dict[str, Tensor]:
        """Return the state in tensors, kept in private checkpoints only."""
        return {}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `tensor_state`.

        Args:
            state: what `tensor_state` returned, tensors by name.
        """
        return None
