"""The parts a report is made of: said once here, spelled as Markdown or as HTML elsewhere."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Level = Literal["danger", "warning"]


@dataclass(frozen=True)
class Fact:
    """One line of a table of facts: what, how much, and what that means in plain words."""

    label: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class Facts:
    """A table of facts."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Paragraph:
    """Plain words; ``lead`` comes first and stands out."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Items:
    """A list; ``empty`` is said instead when there is nothing in it."""

    items: tuple[str, ...]
    empty: str


@dataclass(frozen=True)
class Table:
    """Columns of numbers or words; the ``numeric`` ones are set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)
    strong: frozenset[int] = field(default_factory=frozenset)  # rows that stand out


@dataclass(frozen=True)
class Line:
    """One series of points (x, y)."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mark:
    """The value that the report is about: a named point.

    In a spend it is the level to stay within, too.
    """

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Plot:
    """What a figure shows, before it is drawn.

    ``description`` says the same to who cannot see it.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    style: Literal["spend", "series", "profile"] = "series"
    mark: Mark | None = None


@dataclass(frozen=True)
class Plots:
    """Figures, and a table of the same numbers, side by side where there is room.

    A form without figures leaves them out and keeps the table.
    """

    plots: tuple[Plot, ...]
    table: Table | None = None


Block: TypeAlias = Facts | Paragraph | Items | Table | Plots


@dataclass(frozen=True)
class Section:
    """A heading, one plain sentence saying what it shows, and its parts."""

    anchor: str
    title: str
    intro: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Notice:
    """Something that must not be overlooked, said before anything else."""

    level: Level
    title: str
    text: str


@dataclass(frozen=True)
class Headline:
    """The top of the report: the guarantee in one sentence and in one line of symbols."""

    subtitle: str
    sentence: str
    epsilon: str
    delta: str
    kind: str
    notices: tuple[Notice, ...]
    meaning: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    headline: Headline
    sections: tuple[Section, ...]
    footer: str
