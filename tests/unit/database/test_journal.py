import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.database.journal import Ballast, Journal

RECORDS = [b'{"a":1}', b'"\\n"', b"[1,2]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def _failing(error_number: int) -> Callable[[int], None]:
    def fsync(_: int) -> None:
        raise OSError(error_number, os.strerror(error_number))

    return fsync


def test_records_come_back_in_their_order(path: Path) -> None:
    Journal(path).append(RECORDS[:1])
    Journal(path).append(RECORDS[1:])

    assert Journal(path).read() == RECORDS


def test_a_journal_that_never_was_is_empty(path: Path) -> None:
    journal = Journal(path)

    journal.empty()

    assert journal.read() == []


def test_an_emptied_journal_is_empty(path: Path) -> None:
    journal = Journal(path)
    journal.append(RECORDS)

    journal.empty()

    assert journal.read() == []


def test_only_its_owner_reads_it(path: Path) -> None:
    Journal(path).append(RECORDS)

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_that_was_cut_anywhere_keeps_every_whole_line(path: Path) -> None:
    Journal(path).append(RECORDS)
    content = path.read_bytes()
    ends = [content.index(record) + len(record) + 1 for record in RECORDS]

    for length in range(len(content)):
        path.write_bytes(content[:length])

        assert Journal(path).read() == RECORDS[: sum(end <= length for end in ends)]


def test_what_follows_a_torn_line_is_kept(path: Path) -> None:
    Journal(path).append(RECORDS[:1])
    path.write_bytes(path.read_bytes() + b'["0000')

    Journal(path).append(RECORDS[1:])

    assert Journal(path).read() == RECORDS


@given(position=st.integers(0, 20), flip=st.integers(1, 255))
def test_a_flipped_bit_costs_its_own_line_alone(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    Journal(path).append(RECORDS)
    content = bytearray(path.read_bytes())
    content[min(position, len(content.split(b"\n")[0]) - 1)] ^= flip
    path.write_bytes(content)

    assert Journal(path).read() == RECORDS[1:]


@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EIO])
def test_records_that_were_refused_do_not_count(path: Path, error_number: int) -> None:
    Journal(path).append(RECORDS[:1])

    with pytest.raises(OSError, match=os.strerror(error_number)):
        Journal(path, _failing(error_number)).append(RECORDS[1:])

    assert Journal(path).read() == RECORDS[:1]


def test_the_ballast_takes_room_and_gives_it_back(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", 65536)

    ballast.make()
    ballast.make()

    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 65536
    assert ballast.drop()
    assert not ballast.drop()
    assert not (tmp_path / "ballast").exists()


def test_a_ballast_of_another_size_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "ballast").write_bytes(b"half")

    Ballast(tmp_path / "ballast", 65536).make()

    assert (tmp_path / "ballast").stat().st_size == 65536


def test_where_there_is_no_room_nothing_half_made_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        Ballast(tmp_path / "ballast", 2**60).make()

    assert list(tmp_path.iterdir()) == []
