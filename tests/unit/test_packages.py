"""Each package says in its `__init__.py` what each of its modules owns, so that nobody has to guess
where something is; and pages name no module that is not there."""

import re
from pathlib import Path

import pytest

import tollway

SOURCES = Path(tollway.__file__).parent
PACKAGES = sorted(
    init.parent
    for init in SOURCES.rglob("__init__.py")
    # The modules of `cli` are the commands, by their names.
    if init.parent.name not in ("tollway", "cli")
)
PAGES = SOURCES.parent.parent / "docs"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_a_package_says_what_each_of_its_modules_owns(package: Path) -> None:
    said = (package / "__init__.py").read_text(encoding="utf-8")

    modules = {file.name for file in package.glob("*.py")} - {"__init__.py"}
    packages = {f"{other.name}/" for other in PACKAGES if other.parent == package}
    unsaid = {name for name in modules | packages if name not in said}
    gone = set(re.findall(r"\b[a-z_]+\.py\b", said)) - modules

    assert (unsaid, gone) == (set(), set())


@pytest.mark.parametrize("page", ["explanation/architecture.md", "glossary.md"])
def test_a_page_names_modules_that_there_are(page: str) -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", (PAGES / page).read_text("utf-8"))

    assert [name for name in named if not (SOURCES / name).exists()] == []
