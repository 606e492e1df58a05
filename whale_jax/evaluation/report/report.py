"""The report: one self-contained page of films, curves and tables."""

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from whale_jax.base.files import write
from whale_jax.evaluation.report import page
from whale_jax.evaluation.report.words import count


def write_page(
    path: str | os.PathLike,
    tasks: int,
    statements: Iterable[str],
    tiles: Iterable[tuple[str, str]],
    sections: Sequence[tuple[str, str, str]],
) -> Path:
    """Writes the report as one HTML file that loads nothing from elsewhere.

    The file is written next to `path` and then moved into place, so an existing report survives a failure.

    Args:
      path: the file to write, usually `report.html`.
      tasks: number of tasks.
      statements: the opening paragraphs.
      tiles: (caption, figure) pairs below the paragraphs.
      sections: (anchor, name in the navigation, HTML) each.

    Returns:
      `path`.

    Raises:
      WhaleError: the disk is full.
    """
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    cells = "".join(f"<div><dt>{escape(caption)}</dt><dd>{escape(value)}</dd></div>" for caption, value in tiles)
    cells = f'<dl class="tiles">{cells}</dl>\n' if cells else ""
    paragraphs = "".join(f'<p class="lede">{escape(text)}</p>\n' for text in statements)
    header = (
        f'<p class="eyebrow">Whale world model, {count(tasks, "task")}, policies held out of training</p>\n'
        "<h1>What the robot did, and what the model imagined</h1>\n"
        f'{paragraphs}{cells}<nav aria-label="Sections">{links}</nav>'
    )
    footer = "<p>Every number here, with the protocol that made it, is in <code>metrics.json</code>.</p>"
    bodies = [html for _, _, html in sections]
    write(Path(path), page.document("Whale: real and imagined", header, bodies, footer).encode())
    return Path(path)
