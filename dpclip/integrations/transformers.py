"""A gradient clipper inside the Hugging Face Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpclip.errors import InputError
from dpclip.postprocess import GradientClipper

_FILE = "clipper.pt"
_log = logging.getLogger(__name__)


class ClipCallback(TrainerCallback):
    """Clips once per optimizer step, after accumulation and unscaling; its state goes with the
    Trainer's checkpoints.

    The Trainer's own clipping (`max_grad_norm`, 1 by default) is switched off, because it would
    clip a second time. The clipper's numbers join the Trainer's logs.

    Args:
        clipper: without parameters (it is then given the model's), or with them.
    """

    def __init__(self, clipper: GradientClipper) -> None:
        self.clipper = clipper

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over clipping, and the state of the checkpoint that training resumes from.

        Raises:
            InputError: that checkpoint was written without this callback.
        """
        if args.max_grad_norm:
            _log.warning(
                "max_grad_norm = %s is switched off: %s clips",
                args.max_grad_norm,
                self.clipper.name,
            )
            args.max_grad_norm = 0.0
        if not self.clipper.names:
            self.clipper.bind(kwargs["model"].named_parameters())
        if state.global_step:
            self._restore(args, state)

    def _restore(self, args: TrainingArguments, state: TrainerState) -> None:
        given = args.resume_from_checkpoint
        folders = [Path(given)] if isinstance(given, str) else []
        folders.append(_folder(args, state))
        found = next((folder / _FILE for folder in folders if (folder / _FILE).exists()), None)
        if found is None:
            raise InputError(
                f"training resumes at step {state.global_step}, and {folders[-1]} holds no "
                f"{_FILE}: it was saved without this callback; resume with it from a checkpoint of "
                "its own, or start anew"
            )
        self.clipper.load_state_dict(torch.load(found, weights_only=True))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip."""
        optimizer = kwargs.get("optimizer")
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:  # float16: otherwise the norms would be those of scaled gradients
            scaler.unscale_(optimizer.optimizer)  # type: ignore[union-attr]
        self.clipper.step()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the clipper's numbers, also to what the Trainer has just written into its history."""
        for log in (kwargs.get("logs"), state.log_history[-1] if state.log_history else None):
            if log is not None:
                log.update(self.clipper.metrics())

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the state beside the Trainer's."""
        if state.is_world_process_zero and (folder := _folder(args, state)).is_dir():
            torch.save(self.clipper.state_dict(), folder / _FILE)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
