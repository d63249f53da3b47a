"""docs/reference says what the code does: each page is as scripts/reference would write it now."""

import pytest
from tests.support.reference import FOLDER, PAGES

from tollway import metrics
from tollway.settings import SECTIONS


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

    for one in metrics.described():
        assert f"| `{one.name}` | {one.kind} |" in page
