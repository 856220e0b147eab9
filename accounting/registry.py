"""One kind of registry for everything that is chosen by name: `NAME` or
`NAME:key=value,key=value`.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin

from accounting.errors import InputError

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Makers of one kind of thing, by name.

    A maker is a class or a function; its signature says which settings the text may give. Packages
    outside this one add makers by entry points of the registry's group, and they are looked up when
    a name is not known or all names are listed.

    Args:
        what: what the things are called in messages, "clipping rule".
        group: of entry points, each NAME = "module:maker"; None for a closed registry.
        key: the attribute of a maker that holds its name.
    """

    error: ClassVar[type[Exception]] = InputError

    def __init__(self, what: str, group: str | None = None, key: str = "name") -> None:
        self.what, self.group, self._key = what, group, key
        self._makers: dict[str, Callable[..., T]] = {}
        self._lazy: dict[str, EntryPoint] = {}
        self._aliases: dict[str, str] = {}

    def register(self, maker: M, name: str | None = None) -> M:
        """Add a maker; a decorator, too.

        Args:
            maker: a class or function that returns a T.
            name: what it is chosen by; by default the maker's attribute `key`.

        Returns:
            the maker.

        Raises:
            InputError: another maker has that name.
        """
        name = name or getattr(maker, self._key)
        known = self._makers.get(name, maker)
        if _home(known) != _home(maker):  # a module that is loaded again replaces what it made
            raise self.error(
                f"{self.what} {name!r} is registered already, by {known.__module__}: choose "
                "another name"
            )
        self._makers[name] = maker
        return maker

    def named(self, name: str) -> Callable[[M], M]:
        """`register` as a decorator that gives the name."""
        return lambda maker: self.register(maker, name)

    def lazy(self, name: str, target: str) -> None:
        """Add a maker that is imported when it is first asked for.

        Args:
            name: what it is chosen by.
            target: "module:attribute".
        """
        self._lazy[name] = EntryPoint(name, target, self.group or "")

    def alias(self, old: str, name: str) -> None:
        """Keep reading an earlier spelling of a name or of a setting; it is listed nowhere.

        Args:
            old: the earlier spelling.
            name: what it stands for.
        """
        self._aliases[old] = name

    def names(self) -> list[str]:
        """All names, sorted; those of installed entry points, too."""
        return sorted({*self._makers, *(point.name for point in self._points())})

    def __contains__(self, name: str) -> bool:
        name = self._aliases.get(name, name)
        return name in self._makers or any(point.name == name for point in self._points())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def check(self, name: str) -> None:
        """Refuse a name that `get` would not find, without importing anything.

        Args:
            name: of a maker.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self:
            self._loaded(name)

    def get(self, name: str) -> Callable[..., T]:
        """Find a maker.

        Args:
            name: of the maker, or an earlier spelling.

        Raises:
            InputError: there is none, and the message has the likeliest name and all others; or its
                package cannot be imported.
        """
        name = self._aliases.get(name, name)
        if name not in self._makers:
            self._makers[name] = self._loaded(name)
        return self._makers[name]

    def _loaded(self, name: str) -> Callable[..., T]:
        point = next((point for point in self._points() if point.name == name), None)
        if point is None:
            known = self._listed(name, self.names())
            raise self.error(f"{self.what} {name!r} is unknown: choose one of {known}")
        try:
            found: Callable[..., T] = point.load()
        except (ImportError, AttributeError) as error:
            raise self.error(
                f"{self.what} {name!r} of {point.value} cannot be imported ({error}): mend or "
                "remove the package that brings it"
            ) from error
        return found

    def make(self, text: str, *fixed: Any, **more: Any) -> T:
        """Build one of the things, its settings read as the maker's signature says.

        Args:
            text: `NAME` or `NAME:key=value,key=value`.
            fixed: arguments that come before all others.
            more: further arguments, which the text cannot give.

        Raises:
            InputError: unknown name or setting (the known ones are listed), or a value of another
                kind.
        """
        name, _, settings = text.partition(":")
        maker = self.get(name)
        if not settings:
            return maker(*fixed, **more)
        kinds = {key: kind for key, kind in setting_types(maker).items() if key not in more}
        values: dict[str, Any] = {}
        for setting in filter(None, settings.split(",")):
            key, _, value = setting.partition("=")
            key = self._aliases.get(key, key)
            if key not in kinds:
                known = self._listed(key, list(kinds))
                raise self.error(f"{self.what} {name!r} has no setting {key!r}: it knows {known}")
            try:
                values[key] = read_value(value, kinds[key])
            except ValueError:
                wanted = described(kinds[key])
                raise self.error(
                    f"{self.what.split()[0]} setting {setting!r}: {value!r} is not {wanted}"
                ) from None
        return maker(*fixed, **values, **more)

    def _points(self) -> Iterator[EntryPoint]:
        yield from self._lazy.values()
        if self.group:
            yield from entry_points(group=self.group)

    @staticmethod
    def _listed(given: str, known: list[str]) -> str:
        near = difflib.get_close_matches(given, known, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        return f"{', '.join(known) or 'none'}{meant}"


def _home(maker: Callable[..., Any]) -> tuple[str, str]:
    return maker.__module__, maker.__qualname__


def setting_types(maker: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a maker that text can give, with their types.

    Args:
        maker: annotated in the usual way, with or without `from __future__ import annotations`.

    Returns:
        types made of float, int, bool, str, None and literal texts; other settings are left out.
    """
    found: dict[str, Any] = {}
    for key, parameter in inspect.signature(maker).parameters.items():
        kind = _resolved(parameter.annotation, maker)
        if _parts(kind) and all(part in _READERS or isinstance(part, str) for part in _parts(kind)):
            found[key] = kind
    return found


def _resolved(annotation: Any, maker: Callable[..., Any]) -> Any:
    """An annotation as a type; one that is text is looked up where the maker was written."""
    if not isinstance(annotation, str):
        return annotation
    for owner in getattr(maker, "__mro__", (maker,)):
        names = vars(inspect.getmodule(owner) or types)
        try:
            return eval(annotation, dict(names))
        except Exception:
            continue
    return inspect.Parameter.empty


def _parts(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(part for one in get_args(kind) for part in _parts(one))
    if get_origin(kind) is Literal:
        return get_args(kind)
    return () if kind is inspect.Parameter.empty else (kind,)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _none(text: str) -> None:
    if text != "none":
        raise ValueError(text)


# in the order in which they are tried
_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    type(None): (_none, "none"),
    bool: (_yes_or_no, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
}


def read_value(text: str, kind: Any) -> Any:
    """A setting's text as the first of its types that it can be.

    Raises:
        ValueError: it can be none of them.
    """
    parts = _parts(kind)
    if text in parts:  # a literal
        return text
    for part, (read, _) in _READERS.items():
        if part in parts:
            try:
                return read(text)
            except ValueError:
                continue
    raise ValueError(text)


def described(kind: Any) -> str:
    """A setting's types in words, for messages.

    Args:
        kind: as `setting_types` gives it.

    Returns:
        text such as "a number", alternatives joined by "or".
    """
    parts = _parts(kind)
    words = [
        words for part, (_, words) in _READERS.items() if part in parts and part is not type(None)
    ]
    words += [part for part in parts if isinstance(part, str)]
    return " or ".join([*words, *(["none"] if type(None) in parts and len(words) > 1 else [])])
