"""A seeded bug whose place in the source has changed would be seeded no more."""

import pytest
from tests.money_bugs import BUGS, ROOT, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_money_bug_has_its_place_in_the_source(bug: Bug) -> None:
    source = (ROOT / "src" / "tollway" / bug.file).read_text()

    assert source.count(bug.right) == 1
    assert bug.right != bug.wrong
