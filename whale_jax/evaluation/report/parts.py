"""Pieces of HTML that sections share; text is escaped here."""

from collections.abc import Iterable
from html import escape

from whale_jax.evaluation.report.curves import swatch

TASKS_APART = 6  # up to this many tasks have charts of their own, more are averaged


def head(*names: str) -> str:
    """Returns the head of a table; a name that ends in "<" has its column aligned left."""
    cells = (
        f'<th scope="col" class="text">{escape(name[:-1])}</th>'
        if name.endswith("<")
        else f'<th scope="col">{escape(name)}</th>'
        for name in names
    )
    return f"<tr>{''.join(cells)}</tr>"


def group_head(title: str, index: int) -> str:
    """Returns how a row begins whose group has a title, which stands in its first row alone."""
    return "<tr><th></th>" if index else f'<tr class="first"><th scope="row">{escape(title)}</th>'


def figures(shown: Iterable[tuple[str, str]]) -> str:
    """Returns charts or films side by side, each (caption, HTML)."""
    inside = (f"<figure><figcaption>{escape(caption)}</figcaption>{html}</figure>" for caption, html in shown)
    return f'<div class="charts">{"".join(inside)}</div>\n'


def legend(roles: Iterable[tuple[str, str]]) -> str:
    """Returns what the lines of charts mean, each (role, words)."""
    items = "".join(f"<li>{swatch(role)}{escape(words)}</li>" for role, words in roles)
    return f'<ul class="legend" aria-label="Lines of the charts">{items}</ul>\n'
