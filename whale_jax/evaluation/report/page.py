"""The report's page: the document around it, and small pieces of HTML for its sections."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from whale_jax.evaluation.report.style import SCRIPT, STYLE

# The page may not load anything from elsewhere.
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def document(title: str, header: str, sections: Sequence[str], footer: str) -> str:
    """Returns the page as one HTML document that loads nothing from a server."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{"".join(sections)}</main>
<footer>
{footer}
</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def section(name: str, title: str, body: str) -> str:
    """Returns a section of the page, reachable as `#name`."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n'
        f"{body}\n</section>\n"
    )


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number for a table, or a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(values: list[float | None]) -> str:
    """Returns [value, low, high] as `0.31 [0.23, 0.38]`, or `undefined`."""
    value, low, high = values
    return "undefined" if value is None else f"{number(value)} [{number(low)}, {number(high)}]"


def words(name: str) -> str:
    """Returns a key as words: `repeat_last_frame` as `repeat last frame`."""
    return re.sub(r"[_\s]+", " ", str(name)).strip()


def bars(rows: Iterable[tuple[str, float, str]], total: str) -> str:
    """Returns a list of horizontal bars from rows (name, size, size in words), with the total in the last line."""
    rows = list(rows)
    largest = max((size for _, size, _ in rows), default=0) or 1
    items = [
        f'<li><span>{escape(words(name))}</span><i style="width: {100 * size / largest:.1f}%"></i>'
        f"<span>{escape(text)}</span></li>"
        for name, size, text in rows
    ]
    items.append(f'<li class="total"><span>total</span><span></span><span>{escape(total)}</span></li>')
    return f'<ul class="bars">{"".join(items)}</ul>'


def facts(value: dict) -> str:
    """Returns a dictionary of JSON values as a description list, in which dictionaries nest."""
    rows = [f"<dt>{escape(words(key))}</dt><dd>{_fact(item)}</dd>" for key, item in value.items()]
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return facts(value) if value else "none"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value) if value else "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return escape(str(value))


def table(caption: str, head: str, rows: Sequence[str]) -> str:
    """Returns a table of figures, which scrolls inside its own frame on a narrow screen."""
    label = escape(caption)
    return (
        f'<p class="note above">{label}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">\n'
        f'<table class="figures"><thead>{head}</thead>\n<tbody>{"".join(rows)}</tbody></table></div>\n'
    )
