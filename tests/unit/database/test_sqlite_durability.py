from contextlib import closing
from pathlib import Path

from tollway.database.sqlite import connect

FULL = 2


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "tollway.db")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (FULL,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
