"""README and docs: named files exist, links lead to existing headings, and lines keep to their width."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"\b(?:whale_jax|configs|docs|benchmarks|tests|launch)/[\w/-]+\.(?:py|md|sh|png|yaml|sbatch)\b")


def prose(document: Path) -> list[str]:
    """The lines of a document that are neither code, table nor picture."""
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text(encoding="utf-8"))
    return [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ (.*)$", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document):
    named = set(NAMED.findall(document.read_text(encoding="utf-8")))
    assert not {path for path in named if not (ROOT / path).is_file()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?://)([^)\s]*)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_prose_is_wrapped_at_100(document):
    unbreakable = re.compile(r"^\s*(\S+|`[^`]+`[.,:]?)$")  # a word, or one piece of code
    assert not [line for line in prose(document) if len(line) > 100 and not unbreakable.match(line)]
