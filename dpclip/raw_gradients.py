"""Which parameters belong to a private run, so that no other reader gets their raw gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from dpclip.errors import PrivacyError

_GUARDED: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()


def guard(parameters: Sequence[nn.Parameter]) -> None:
    """Mark these parameters' `.grad` as private from now on, but for the moments of `released`.

    Args:
        parameters: of a private run; held weakly.
    """
    for parameter in parameters:
        _GUARDED[id(parameter)] = parameter


def unguard(parameters: Sequence[nn.Parameter]) -> None:
    """End the guard of these parameters, whose private run is over.

    Args:
        parameters: guarded or not.
    """
    for parameter in parameters:
        _GUARDED.pop(id(parameter), None)


@contextmanager
def released(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lift the guard while the optimizer works: `.grad` then holds what was released.

    Args:
        parameters: those of the update; only guarded ones are guarded again afterwards.
    """
    held = [p for p in parameters if _GUARDED.get(id(p)) is p]
    unguard(held)
    try:
        yield
    finally:
        guard(held)


def check(parameters: Sequence[nn.Parameter], reader: str) -> None:
    """Refuse to read raw gradients.

    Args:
        parameters: whose `.grad` is about to be read.
        reader: who reads, for the message.

    Raises:
        PrivacyError: one of the parameters belongs to a private run, and this is not its update.
    """
    if any(_GUARDED.get(id(p)) is p for p in parameters):
        raise PrivacyError(
            f"{reader} would read raw gradients of a private run, and what it learns from them "
            "would leak: give it to make_private(postprocess=[…]), where it sees the released "
            "gradient, or end the run with private.close()"
        )
