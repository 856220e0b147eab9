"""A run's privacy statement as a report: one HTML page, Markdown, or JSON."""

from pathlib import Path
from typing import Literal

from dpclip.errors import InputError
from dpclip.files import write_atomically
from dpclip.report.markdown import markdown
from dpclip.report.page import html
from dpclip.report.reading import as_json, read_metrics, read_statement
from dpclip.report.sections import document

__all__ = ["FORMATS", "Format", "render", "write"]

Format = Literal["html", "md", "json"]
FORMATS: tuple[Format, ...] = ("html", "md", "json")


def render(run: Path, format: Format = "html") -> str:
    """Make the report of a run folder, from what is under its ``public/`` alone.

    Equal input gives equal text, byte by byte.

    Args:
        run: the run folder.
        format: "html", "md" or "json".

    Returns:
        the whole report as text.

    Raises:
        InputError: ``run`` is no run folder, its statement is missing, unreadable or newer than
            this version knows, or the format is not one of html, md, json.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown: use one of {', '.join(FORMATS)}")
    statement = read_statement(Path(run))
    if format == "json":
        return as_json(statement)
    report = document(statement, read_metrics(Path(run)))
    return html(report) if format == "html" else markdown(report)


def write(run: Path) -> Path:
    """Write ``run/public/report.html``; readers see the old page or the new one.

    Args:
        run: the run folder.

    Returns:
        the page's path.

    Raises:
        InputError: as in `render`.
    """
    target = Path(run) / "public" / "report.html"
    write_atomically(target, render(run, "html"))
    return target
