"""Private runs are in one process: several would each draw a sample and noise of their own."""

from __future__ import annotations

import os

import torch
from torch import nn

from dpclip.errors import InputError

_WHY = (
    "several processes are not supported yet, because each would draw its own sample and noise and "
    "the guarantee would hold for none"
)
_PACKAGES = ("torch.distributed.", "deepspeed.", "fairscale.")
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def check_one_process(model: nn.Module) -> None:
    """Refuse models and environments of several processes or devices.

    Args:
        model: with all its modules and parameters.

    Raises:
        InputError: the model, or a module of it, is wrapped or sharded; or there is more than one
            process.
    """
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if isinstance(module, _WRAPPERS):
            raise InputError(
                f"{where} is wrapped in {type(module).__name__}: {_WHY}; give the bare model (its "
                ".module), built in one process"
            )
        if (found := _distributed(module)) is not None:
            raise InputError(
                f"{where} is sharded or replicated ({found}): {_WHY}; give the bare model in one "
                "process"
            )
    for name, parameter in model.named_parameters():
        if _distributed(parameter) is not None:
            raise InputError(
                f"parameter {name!r} is a DTensor: {_WHY}; give a model of plain tensors in one "
                "process"
            )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _check_count(torch.distributed.get_world_size(), "torch.distributed runs {} processes")
    _check_count(_world_size(), "WORLD_SIZE is {} in the environment")


def _distributed(found: object) -> str | None:
    """Name the class that distributes a module or tensor, if one does.

    By the names of its classes, so that nothing heavy is imported to ask.
    """
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(found).__mro__)
    return next((name.rpartition(".")[2] for name in names if name.startswith(_PACKAGES)), None)


def _world_size() -> int:
    given = os.environ.get("WORLD_SIZE", "").strip()
    return int(given) if given.isdecimal() else 1


def _check_count(count: int, where: str) -> None:
    if count > 1:
        raise InputError(
            f"{where.format(count)}: {_WHY}; start one process, without torchrun or accelerate's "
            "launcher"
        )
