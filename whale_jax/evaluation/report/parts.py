"""Pieces of HTML that sections share. They escape their text."""

from collections.abc import Iterable
from html import escape

from whale_jax.evaluation.report.curves import swatch

TASKS_APART = 6  # up to this many tasks have their own charts; more are averaged


def head(*names: str) -> str:
    """Returns the head of a table; the column of a name that ends in "<" is aligned left."""
    cells = (
        f'<th scope="col" class="text">{escape(name[:-1])}</th>'
        if name.endswith("<")
        else f'<th scope="col">{escape(name)}</th>'
        for name in names
    )
    return f"<tr>{''.join(cells)}</tr>"


def group_head(title: str, index: int) -> str:
    """Returns the start of a row in a titled group; only the group's first row shows the title."""
    return "<tr><th></th>" if index else f'<tr class="first"><th scope="row">{escape(title)}</th>'


def figures(shown: Iterable[tuple[str, str]]) -> str:
    """Returns charts or films side by side, from pairs (caption, HTML)."""
    inside = (f"<figure><figcaption>{escape(caption)}</figcaption>{html}</figure>" for caption, html in shown)
    return f'<div class="charts">{"".join(inside)}</div>\n'


def legend(roles: Iterable[tuple[str, str]]) -> str:
    """Returns the legend of charts, from pairs (role, words)."""
    items = "".join(f"<li>{swatch(role)}{escape(words)}</li>" for role, words in roles)
    return f'<ul class="legend" aria-label="Lines of the charts">{items}</ul>\n'
