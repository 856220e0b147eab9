"""Which parameters belong to a private run, so that nothing outside it reads their raw gradients by
mistake.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from dpclip.errors import PrivacyError

_GUARDED: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()


def guard(parameters: Sequence[nn.Parameter]) -> None:
    """From now on these parameters' `.grad` is private, but for the moments of `released`."""
    for parameter in parameters:
        _GUARDED[id(parameter)] = parameter


def unguard(parameters: Sequence[nn.Parameter]) -> None:
    """The private run has ended."""
    for parameter in parameters:
        _GUARDED.pop(id(parameter), None)


@contextmanager
def released(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """While the optimizer works: `.grad` holds what was released."""
    held = [p for p in parameters if _GUARDED.get(id(p)) is p]
    unguard(held)
    try:
        yield
    finally:
        guard(held)


def check(parameters: Sequence[nn.Parameter], reader: str) -> None:
    """Refuse to read raw gradients.

    Raises:
        PrivacyError: one of the parameters belongs to a private run, and this is not its update.
    """
    if any(_GUARDED.get(id(p)) is p for p in parameters):
        raise PrivacyError(
            f"{reader} would read raw gradients of a private run, and what it learns from them "
            "would leak: give it to make_private(postprocess=[…]), where it sees the released "
            "gradient, or end the run with private.close()"
        )
