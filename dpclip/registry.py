"""Things that are chosen by text, `NAME:key=value`: accounting's registry, with this package's
errors.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import accounting.registry
from dpclip.errors import InputError

T = TypeVar("T")


class Registry(accounting.registry.Registry[T]):
    """Makers of one kind of thing, by name; what it refuses is an `InputError` of this package."""

    error: ClassVar[type[Exception]] = InputError
