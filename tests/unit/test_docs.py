"""docs/reference says what the code does, each page as scripts/reference would write it now; and
what other pages show can be used as it stands there."""

import re
from pathlib import Path

import pytest
from tests.support.reference import FOLDER, PAGES

from tollway.metrics.described import described
from tollway.settings import SECTIONS, load_settings


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_current(name: str) -> None:
    written = (FOLDER / name).read_text(encoding="utf-8")

    assert written == PAGES[name](), "run scripts/reference"


def test_every_page_of_the_reference_is_made() -> None:
    assert {page.name for page in FOLDER.glob("*.md")} == set(PAGES)


def test_every_setting_is_explained() -> None:
    page = PAGES["settings.md"]()

    for struct in SECTIONS.values():
        for key in struct.__struct_fields__:
            assert f"| `{key}` | " in page


def test_every_metric_is_explained() -> None:
    page = PAGES["metrics.md"]()

    for one in described():
        assert f"| `{one.name}` | {one.kind} |" in page


DOCS = FOLDER.parent
TOML = [
    pytest.param(page, block, id=f"{page.relative_to(DOCS)}-{number}")
    for page in [*sorted(DOCS.glob("how-to/*.md")), DOCS / "start.md", DOCS.parent / "README.md"]
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.S))
]


@pytest.mark.parametrize(("page", "block"), TOML)
def test_every_configuration_that_a_page_shows_is_one(
    page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLWAY_DATABASE", "postgresql://tollway@db.example/tollway")
    file = tmp_path / "tollway.toml"
    file.write_text(block, encoding="utf-8")

    settings = load_settings(file, for_serving=False)

    assert settings.models


LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_every_link_to_a_page_of_ours_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
