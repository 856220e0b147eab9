"""Things that are chosen by text: `NAME` or `NAME:key=value,key=value`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dpclip.errors import BadInput

T = TypeVar("T")


def one_of(setting: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown choice."""
    if value not in known:
        raise BadInput(f"{setting} = {value!r} is unknown: choose one of {', '.join(known)}")


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text == "none" else kind(text)


def _auto(text: str) -> Any:
    return text if text == "auto" else _or_none(float)(text)


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "float": (float, "a number"),
    "float | None": (_or_none(float), "a number"),
    "int": (int, "a whole number"),
    "int | None": (_or_none(int), "a whole number"),
    "bool": (_yes_or_no, "true or false"),
    "str": (str, "text"),
    "Auto": (_auto, "a number, none or auto"),
}  # by annotation; other settings are for Python


def made_from(text: str, known: Mapping[str, Callable[..., T]], what: str) -> T:
    """Build one of the known things, its settings read as its signature says.

    Args:
        text: `NAME` or `NAME:key=value,key=value`.
        known: makers by name.
        what: what they are called in messages, "clipping rule".

    Raises:
        BadInput: unknown name or setting (the known ones are listed), or a value of another kind.
    """
    name, _, settings = text.partition(":")
    if name not in known:
        raise BadInput(f"{what} {name!r} is unknown: choose one of {', '.join(sorted(known))}")
    make = known[name]
    kinds = {
        key: _KINDS[p.annotation] for key, p in inspect.signature(make).parameters.items() if p.annotation in _KINDS
    }
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in kinds:
            raise BadInput(f"{what} {name!r} has no setting {key!r}: it knows {', '.join(kinds) or 'none'}")
        kind, wanted = kinds[key]
        try:
            values[key] = kind(value)
        except ValueError:
            raise BadInput(f"{what.split()[0]} setting {setting!r}: {value!r} is not {wanted}") from None
    return make(**values)
