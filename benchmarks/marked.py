"""Figures are written into the documents between two marks, so that the prose around them stays."""

from pathlib import Path


def write_between_marks(page: Path, name: str, text: str) -> None:
    """Between `<!-- NAME -->` and `<!-- /NAME -->`, each on a line of its own."""
    before, opened, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition(f"<!-- /{name} -->\n")
    if not (opened and closed):
        raise SystemExit(f"{page} has no place for {name}: put <!-- {name} --> there, and its end.")
    page.write_text(f"{before}{opened}\n{text.strip()}\n\n{closed}{after}")
