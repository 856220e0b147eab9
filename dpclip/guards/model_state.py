"""What a forward pass may not leave in a model: anything saved with its weights, without noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpclip.errors import InputError, PrivacyError
from dpclip.gradient_sum import bits


def check_stateful_layers(model: nn.Module) -> None:
    """Refuse layers that are known to write into the model, or to mix the rows of a batch.

    Batch normalization is `dpclip.diagnosis.model_check.check_batch_norm`'s.

    Args:
        model: with all its modules.

    Raises:
        InputError: names the module.
    """
    for name, module in model.named_modules():
        kind = f"module {name!r} ({type(module).__name__})"
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            if module.max_norm is not None:
                raise InputError(
                    f"{kind} has max_norm, which rewrites the rows that are looked up, without "
                    "noise: set max_norm=None and rescale the table before training"
                )
            if module.scale_grad_by_freq:
                raise InputError(
                    f"{kind} has scale_grad_by_freq, which divides a record's gradient by the "
                    "other records' counts: set scale_grad_by_freq=False"
                )
        running = (
            getattr(module, "running_mean", None) is not None
            or getattr(module, "running_var", None) is not None
        )
        if (
            running
            and getattr(module, "track_running_stats", False)
            and not isinstance(module, _BatchNorm)
        ):
            raise InputError(
                f"{kind} keeps running statistics of the records, which are saved with the model "
                "without noise: set track_running_stats=False"
            )


def all_modules(model: nn.Module) -> list[nn.Module]:
    """List each module once, the model first; several times faster than `model.modules()`.

    Args:
        model: walked by its `_modules`.
    """
    found, seen = [model], {id(model)}
    for module in found:  # grows as it is walked
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


class _Held:
    """A tensor as it was: by identity and version, and by value as far as that was asked for."""

    __slots__ = ("copy", "digest", "module", "name", "tensor", "version")

    def __init__(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        self.module, self.name, self.tensor, self.version = module, name, tensor, tensor._version
        self.copy: Tensor | None = None
        self.digest: int | None = None

    def changed(self) -> bool:
        now: Tensor | None = self.module._parameters.get(self.name)
        if now is None:
            now = self.module._buffers.get(self.name)
        if now is not self.tensor or self.tensor._version != self.version:
            return True
        if self.copy is not None and not _same(self.tensor, self.copy):
            return True
        return self.digest is not None and _digest(self.tensor) != self.digest


class StateWatch:
    """Finds whether a pass changed a parameter, or a buffer that is saved with the model.

    Writes through `.data` leave no trace in a tensor's version, so buffers are compared by value,
    too; parameters only when asked for, because that reads them all.

    Args:
        model: walked anew at each pass, so that what is registered later is found.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: list[_Held] = []
        self._marked = False

    def mark(self, read_parameters: bool = False) -> None:
        """Remember the model as it is now.

        Args:
            read_parameters: find changes of parameters through `.data` as well.
        """
        self._before, self._marked = list(_held(self._model)), True
        for held in self._before:
            if held.name in held.module._buffers:
                held.copy = held.tensor.detach().clone()
            elif read_parameters:
                held.digest = _digest(held.tensor)

    def check(self) -> None:
        """Compare the model with what was marked, and forget that.

        Raises:
            RuntimeError: nothing was marked.
            PrivacyError: a pass changed or made what is saved with the model.
        """
        if not self._marked:
            raise RuntimeError("mark() comes before check()")
        before, self._before, self._marked = self._before, [], False
        for held in before:
            if held.changed():
                self._refuse(held, "changed")
        known = {(id(held.module), held.name) for held in before}
        for held in _held(self._model):
            if (id(held.module), held.name) not in known:
                self._refuse(held, "made")

    def _refuse(self, held: _Held, what: str) -> NoReturn:
        module = next(
            (name for name, module in self._model.named_modules() if module is held.module), "?"
        )
        full = f"{module}.{held.name}" if module else held.name
        is_parameter = isinstance(held.tensor, nn.Parameter)
        remedy = (
            "switch it off (max_norm=None for an embedding), and leave parameters to the optimizer"
            if is_parameter
            else "switch it off (track_running_stats=False, say) or make the buffer non-persistent"
        )
        raise PrivacyError(
            f"{'parameter' if is_parameter else 'buffer'} {full!r} is {what} by the forward pass "
            f"and saved with the model, unprotected: {remedy}"
        )


def _held(model: nn.Module) -> Iterator[_Held]:
    for module in all_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield _Held(module, name, parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield _Held(module, name, buffer)


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare by value; what is not a number equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other) or bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )


def _digest(parameter: Tensor) -> int:
    """Add up the bits, without a copy of them."""
    values = parameter.detach()
    if values.layout != torch.strided or values.is_meta or values.is_complex():
        return 0
    if values.is_contiguous() and values.numel() * values.element_size() % 8 == 0:
        # in the largest words: several times faster
        return int(values.view(-1).view(torch.int64).sum())
    return int(bits(values).sum(dtype=torch.int64))
