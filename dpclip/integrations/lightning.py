"""A gradient clipper inside Lightning; needs the package `lightning`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from dpclip.errors import InputError
from dpclip.postprocess import GradientClipper


class ClipCallback(pl.Callback):
    """Clips once per optimizer step, after accumulation and unscaling; its state goes with
    Lightning's checkpoints.

    Args:
        clipper: without parameters (it is then given the module's), or with them.
    """

    def __init__(self, clipper: GradientClipper) -> None:
        self.clipper = clipper

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over clipping.

        Raises:
            InputError: the Trainer clips, too.
        """
        if trainer.gradient_clip_val:
            raise InputError(
                f"gradient_clip_val = {trainer.gradient_clip_val} would clip what "
                f"{self.clipper.name} has clipped: leave one of them out"
            )
        if not self.clipper.names:
            self.clipper.bind(pl_module.named_parameters())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip, and log what was done."""
        self.clipper.step()
        pl_module.log_dict(self.clipper.metrics())

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return self.clipper.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self.clipper.load_state_dict(state_dict)
