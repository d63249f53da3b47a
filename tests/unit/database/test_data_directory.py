from pathlib import Path

import pytest

from tollway.database.data_directory import DataDirectoryLock
from tollway.errors import StartError


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    first, second = DataDirectoryLock(tmp_path), DataDirectoryLock(tmp_path)
    first.acquire()

    with pytest.raises(StartError, match=r"process \d+"):
        second.acquire(wait_seconds=0)

    first.release()
    second.acquire(wait_seconds=0)
    second.release()
