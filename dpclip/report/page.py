"""A report as one self-contained HTML page: inline style, inline figures, no script, no link."""

from pathlib import Path

from dpclip.report.content import Document, Plot

_HERE = Path(__file__).parent


def html(document: Document) -> str:
    """Spell the whole report; every word of the statement passes the template's escaping.

    Args:
        document: from `sections.document`.

    Returns:
        one page with its style and figures in it; no script, no link.
    """
    import jinja2
    from markupsafe import Markup

    from dpclip.report.figures import svg

    drawn = 0

    def figure(plot: Plot) -> Markup:
        nonlocal drawn
        drawn += 1
        return Markup(svg(plot, f"figure-{drawn}"))  # the drawing escapes its own texts

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    template = environment.from_string((_HERE / "report.html.jinja").read_text(encoding="utf-8"))
    style = Markup((_HERE / "report.css").read_text(encoding="utf-8"))
    return template.render(document=document, figure=figure, style=style) + "\n"
