"""Checkpoints: everything a resumed run needs to continue bit for bit.

All of it stays in `private/`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dpclip.engine.engine import Engine
from dpclip.errors import InputError
from dpclip.files import sync_folder


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says of itself.

    Attributes:
        environment: fingerprint of the machine and libraries that wrote it.
    """

    environment: dict[str, str]


class Checkpoints:
    """Keeps the latest checkpoint of a run under one folder; each appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*")) if self._folder.is_dir() else []

    def save(self, engine: Engine, model: nn.Module, environment: dict[str, str]) -> None:
        """Write the state after `engine.step` steps, then drop older checkpoints."""
        final = self._folder / f"step-{engine.step:09d}-{engine.generation:04d}"
        draft = self._folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(_weights(model), draft / "weights.safetensors")
        torch.save(engine.optimizer.state_dict(), draft / "optimizer.pt")
        torch.save(
            [clipper.state_dict() for clipper in engine.postprocess], draft / "postprocess.pt"
        )
        save_file(_copied(engine.rule.tensor_state()), draft / "rule.safetensors")
        state = {
            "step": engine.step,
            "generation": engine.generation,
            "plan": engine.plan.digest(),
            "ledger_head": engine.ledger.head,
            "rule": engine.rule.public_state(),
            "environment": environment,
        }
        (draft / "state.json").write_text(json.dumps(state))
        for file in draft.iterdir():
            _sync_file(file)
        if final.exists():  # the same state, saved before a crash
            shutil.rmtree(draft)
            return
        os.replace(draft, final)
        sync_folder(self._folder)
        for old in self._all():
            if old != final:
                shutil.rmtree(old)

    def restore(self, engine: Engine, model: nn.Module) -> Restored | None:
        """Load the latest checkpoint into the engine and the model; None if there is none yet.

        Raises:
            InputError: it belongs to another plan, or the ledger has lost lines that it had then.
        """
        found = self._all()
        if not found:
            return None
        latest = found[-1]
        state: dict[str, Any] = json.loads((latest / "state.json").read_text())
        if state["plan"] != engine.plan.digest():
            raise InputError(
                f"the checkpoint {latest.name} belongs to another plan: start a new run"
            )
        if not engine.ledger.contains(state["ledger_head"]):
            raise InputError(
                f"the ledger does not contain the history of checkpoint {latest.name}: it was "
                "shortened or replaced, so the privacy spent is unknown; restore the ledger from a "
                "copy, or start a new run"
            )
        _load_weights(model, load_file(latest / "weights.safetensors"))
        try:
            engine.optimizer.load_state_dict(torch.load(latest / "optimizer.pt", weights_only=True))
        except ValueError as error:
            raise InputError(
                f"the optimizer is not what the run began with ({error}): build the same one over "
                "the same parameters"
            ) from error
        if engine.postprocess:
            kept = torch.load(latest / "postprocess.pt", weights_only=True)
            for clipper, state_of_clipper in zip(engine.postprocess, kept, strict=True):
                clipper.load_state_dict(state_of_clipper)
        engine.rule.load_public_state(state["rule"])
        engine.rule.load_tensor_state(load_file(latest / "rule.safetensors"))
        engine.step, engine.generation = state["step"], state["generation"]
        return Restored(state["environment"])


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad
    }


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    if trained != {name: tensor.shape for name, tensor in weights.items()}:
        raise InputError(
            f"the model's {len(trained)} trainable parameters are not the {len(weights)} that were "
            "saved, in name or shape: build the model as when the run began"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
