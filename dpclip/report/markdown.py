"""A report as Markdown: every word of the statement, escaped, and no figures."""

import re

from dpclip.report.content import (
    Block,
    Document,
    Facts,
    Headline,
    Items,
    Notice,
    Paragraph,
    Plots,
    Section,
    Table,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!$])")
_OPENING = re.compile(r"^(\s*)([-+=]|\d+[.)])(?=\s|$)")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escape(text: str) -> str:
    """Make Markdown show text as it stands: no markup, no HTML, no table cell of its own.

    Args:
        text: of the statement, on one line.
    """
    escaped = _SPECIAL.sub(r"\\\1", text).translate(_ENTITIES)
    return _OPENING.sub(lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", escaped)


def markdown(document: Document) -> str:
    """Spell the whole report, without figures.

    Args:
        document: from `sections.document`.
    """
    parts = [*_headline(document.headline)]
    for section in document.sections:
        parts += _section(section)
    parts += ["---", escape(document.footer)]
    return "\n\n".join(parts) + "\n"


def _headline(headline: Headline) -> list[str]:
    # The first paragraph carries everything that must not be overlooked, before the guarantee
    # itself.
    warnings = [_notice(notice) for notice in headline.notices]
    first = " ".join([*warnings, f"**{escape(headline.sentence)}**"])
    title = f"# Privacy statement\n\n{first}"
    meaning = ["## What this means", *map(escape, headline.meaning)] if headline.meaning else []
    return [title, escape(headline.subtitle) + ".", *meaning]


def _notice(notice: Notice) -> str:
    return f"**{escape(notice.title.upper())}.** {escape(_ended(notice.text))}"


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else text + "."


def _section(section: Section) -> list[str]:
    return [
        f"## {section.title}",
        escape(section.intro),
        *filter(None, map(_block, section.blocks)),
    ]


def _block(block: Block) -> str:
    match block:
        case Facts(facts):
            rows = tuple((fact.label, fact.value, fact.meaning) for fact in facts)
            return _table(Table(("", "Value", "Meaning"), rows))
        case Table():
            return _table(block)
        case Items(items, empty):
            return "\n".join(f"- {escape(item)}" for item in items) if items else escape(empty)
        case Paragraph(text, lead):
            return f"**{escape(lead)}** {escape(text)}".strip() if lead else escape(text)
        case Plots(_, table):
            return _table(table) if table else ""


def _table(table: Table) -> str:
    rule = ["---:" if column in table.numeric else "---" for column in range(len(table.columns))]
    rows = [
        [f"**{escape(cell)}**" if index in table.strong and cell else escape(cell) for cell in row]
        for index, row in enumerate(table.rows)
    ]
    lines = [[escape(column) for column in table.columns], rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
