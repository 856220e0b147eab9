"""Nothing but released gradients reaches the weights.

Checked at the optimizer, at the model and at each pass.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from dpclip.errors import InputError, PrivacyError
from dpclip.guards.model_state import all_modules

_AGAIN = "end the run with private.close() and call make_private again"


def check_optimizer_kind(optimizer: Any) -> None:
    """Check that an optimizer's updates can be checked.

    Args:
        optimizer: or a wrapper that has it as `.optimizer`.

    Raises:
        InputError: it is no `torch.optim.Optimizer`, or it computes gradients itself.
    """
    innermost = _layers(optimizer)[-1]
    hooks = isinstance(innermost, Optimizer) and hasattr(innermost, "_optimizer_step_pre_hooks")
    # a scheduler has an optimizer and is none
    if not hooks or not hasattr(optimizer, "param_groups"):
        raise InputError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer, so its updates cannot be "
            "checked: give one of torch.optim, or a subclass that calls super().__init__()"
        )
    if any(_needs_closure(layer) for layer in _layers(optimizer)):
        raise InputError(
            f"{type(innermost).__name__} computes raw gradients itself, by a closure, and a "
            "private step releases one gradient: choose an optimizer whose step() needs no closure "
            "(SGD, AdamW)"
        )


def _layers(optimizer: Any) -> list[Any]:
    """List an optimizer and what it wraps, innermost last."""
    found = [optimizer]
    while hasattr(inner := getattr(found[-1], "optimizer", None), "step") and all(
        inner is not o for o in found
    ):
        found.append(inner)
    return found


def _needs_closure(optimizer: Any) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class UpdateGuard:
    """Lets an optimizer step with released gradients only.

    Args:
        optimizer: any torch optimizer, or a wrapper that has it as `.optimizer`.
        parameters: the trainable parameters, in order.
        names: the name of each.

    Raises:
        InputError: the optimizer's updates cannot be checked, or another private run has it.
    """

    def __init__(
        self, optimizer: Any, parameters: Sequence[nn.Parameter], names: Sequence[str]
    ) -> None:
        check_optimizer_kind(optimizer)
        hooked = [
            layer for layer in _layers(optimizer) if hasattr(layer, "_optimizer_step_pre_hooks")
        ]
        if any(guard.holds(layer) for guard in _OPEN for layer in hooked):
            raise InputError(
                f"this {type(hooked[-1]).__name__} belongs to a private run that has not ended: "
                "end it with private.close(), or build a new optimizer"
            )
        if any(guard.names_of(parameters) for guard in _OPEN):
            raise InputError(
                "the model's parameters belong to a private run that has not ended, and each of "
                "two runs would promise for itself alone: end that one with private.close()"
            )
        self._parameters = list(parameters)
        self._names = {id(p): name for p, name in zip(self._parameters, names, strict=True)}
        # with versions; None outside of an update
        self._released: dict[int, tuple[Tensor, int]] | None = None
        self._depth, self._stepped, self._closed = 0, False, False
        self._model: weakref.ref[nn.Module] | None = None
        # The optimizer holds the guard by its hooks, so that both are gone when the user lets go of
        # the optimizer.
        self._optimizers = [weakref.ref(layer) for layer in hooked]
        self._handles: list[RemovableHandle] = []
        for layer in hooked:
            first = layer.register_step_pre_hook(self._before_step)
            # others may work on what was released
            layer._optimizer_step_pre_hooks.move_to_end(first.id, last=False)
            self._handles += [first, layer.register_step_post_hook(self._after_step)]
        _OPEN.add(self)
        _watch_strangers()

    def names_of(self, parameters: Sequence[nn.Parameter]) -> list[str]:
        """Name those of the parameters that are guarded.

        Args:
            parameters: any.

        Returns:
            a name for each guarded one, in their order.
        """
        return [self._names[id(p)] for p in parameters if id(p) in self._names]

    def holds(self, optimizer: Any) -> bool:
        """Whether the optimizer is the guarded one, or one of its layers.

        Args:
            optimizer: compared by identity.
        """
        return any(held() is optimizer for held in self._optimizers)

    @contextmanager
    def update(self, values: Sequence[Tensor | None]) -> Iterator[None]:
        """Put released gradients into `.grad` for one `optimizer.step()`; on exit `.grad` is empty.

        Args:
            values: one a parameter, in order, on the scale of the mean; None for a frozen one.

        Raises:
            RuntimeError: another update is under way.
            PrivacyError: the run has ended, a gradient there is not one of these, or the step went
                past the guard.
        """
        if self._closed:
            raise PrivacyError(
                "the private run was ended by private.close(), so it updates nothing: call "
                "make_private"
            )
        if self._released is not None:
            raise RuntimeError("an update is already under way")
        try:
            self._put(values)
            yield
            if not self._stepped:
                raise PrivacyError(
                    "the optimizer did not step, or stepped past torch's step hooks, where raw "
                    "gradients would go unseen: leave optimizer.step as torch has it, and "
                    "accumulation of gradients to private.step()"
                )
        finally:
            self._released, self._depth, self._stepped = None, 0, False
            for parameter in self._parameters:
                parameter.grad = None

    def _put(self, values: Sequence[Tensor | None]) -> None:
        self._released = {}
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.grad = None
            if value is not None:
                parameter.grad = gradient = value.to(parameter.dtype)
                self._released[id(parameter)] = gradient, gradient._version

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._released is None:
            raise PrivacyError(
                "optimizer.step() was called outside of private.step(), where gradients are raw "
                "and would leak into the weights: remove the call, private.step() updates the "
                "model; or end the run with private.close()"
            )
        # args[0] is the optimizer
        if any(callable(given) for given in (*args[1:], *kwargs.values())):
            raise PrivacyError(
                "optimizer.step() was given a closure, which would add raw gradients to the "
                "released one: run the backward pass in microbatch(batch), and step without a "
                "closure"
            )
        self._check_gradients(optimizer)
        self._depth, self._stepped = self._depth + 1, True

    def _after_step(self, *_: Any) -> None:
        self._depth = max(self._depth - 1, 0)

    def _check_gradients(self, optimizer: Any) -> None:
        """Check every gradient that the optimizer would use."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self._was_released(parameter):
                    name = self._name(parameter)
                    raise PrivacyError(
                        f"the optimizer would update {name} with a gradient that was not released: "
                        "run backward passes in microbatch(batch) only, and leave parameters and "
                        f"optimizer as they were; or {_AGAIN}"
                    )

    def _was_released(self, parameter: nn.Parameter) -> bool:
        put = (self._released or {}).get(id(parameter))
        # what a step makes of its checked gradients before super().step() is its own
        if put is None or self._depth:
            return put is not None
        return parameter.grad is put[0] and put[0]._version == put[1]

    def check_stranger(self, optimizer: Any) -> None:
        """Check the step of an optimizer that no guard holds, before it is taken.

        Args:
            optimizer: about to step.

        Raises:
            PrivacyError: it would use raw gradients of this run's parameters.
        """
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) in self._names and not self._was_released(p):
                    raise PrivacyError(
                        f"another optimizer ({type(optimizer).__name__}) would update "
                        f"{self._name(p)} with a gradient that was not released: a private model "
                        "has the one optimizer given to make_private; use that one, or end the run "
                        "with private.close()"
                    )

    def _name(self, parameter: nn.Parameter) -> str:
        name = self._names.get(id(parameter))
        model = self._model() if self._model else None
        if name is None and model is not None:
            name = next((name for name, p in model.named_parameters() if p is parameter), None)
        return (
            "a parameter that does not belong to the private model"
            if name is None
            else f"parameter {name!r}"
        )

    def check_model(self, model: nn.Module) -> None:
        """Check that the model still has the parameters that are protected; frozen ones are fine.

        Args:
            model: that is trained.

        Raises:
            PrivacyError: a parameter was unfrozen, added, replaced or removed.
        """
        if self._model is None or self._model() is not model:
            self._model = weakref.ref(model)
        present: set[int] = set()
        changed = False
        for module in all_modules(model):
            for parameter in module._parameters.values():
                if parameter is not None:
                    present.add(id(parameter))
                    changed = changed or (
                        parameter.requires_grad and id(parameter) not in self._names
                    )
        if changed or not present >= self._names.keys():
            self._refuse(model, present)

    def _refuse(self, model: nn.Module, present: set[int]) -> None:
        for key, name in self._names.items():
            if key not in present:
                raise PrivacyError(
                    f"parameter {name!r} was replaced or removed after make_private, so what is "
                    "protected is no longer what is trained: change values in place (no_grad, "
                    f"copy_), or {_AGAIN}"
                )
        new = next(
            n for n, p in model.named_parameters() if p.requires_grad and id(p) not in self._names
        )
        raise PrivacyError(
            f"parameter {new!r} was unfrozen or added after make_private, so its gradients are "
            f"neither clipped nor noised: freeze it (requires_grad_(False)), or {_AGAIN}"
        )

    def close(self) -> None:
        """Let the optimizer go; the run updates nothing any more."""
        self._closed = True
        _OPEN.discard(self)
        while self._handles:
            self._handles.pop().remove()


_OPEN: weakref.WeakSet[UpdateGuard] = weakref.WeakSet()


@cache
def _watch_strangers() -> None:
    register_optimizer_step_pre_hook(_before_any_step)


def _before_any_step(optimizer: Any, *_: Any) -> None:
    """Stop a second optimizer over the same parameters, which no guard holds."""
    guards = list(_OPEN)
    if not any(guard.holds(optimizer) for guard in guards):
        for guard in guards:
            guard.check_stranger(optimizer)
