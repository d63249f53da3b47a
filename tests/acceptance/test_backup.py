"""What docs/how-to/backup.md has an operator run does what the page says."""

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.support.answers import reply
from tests.support.customer import Customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer, run_tollway

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "backup.md"
(MISSING_CHARGES,) = re.findall(r"<<'END'\n(.*?)\nEND\n", PAGE.read_text("utf-8"), re.S)


def missing_charges(database: Path, access_log: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", MISSING_CHARGES, str(database), str(access_log)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_charge_that_a_backup_has_is_not_told_as_missing_from_it(
    server: TollwayServer, upstream: FakeUpstream, customer: Customer, tmp_path: Path
) -> None:
    """The newest charges lie in a copy as they were committed, and not yet in the table that the
    page's script reads."""
    upstream.answer(reply("Hello.", input_tokens=9, output_tokens=3), times=2)
    customer.chat()
    copied = tmp_path / "data"
    copied.mkdir(mode=0o700)
    shutil.copy(server.data_dir / "signing.key", copied)
    with sqlite3.connect(copied / "tollway.db") as target:
        source = sqlite3.connect(f"file:{server.data_dir / 'tollway.db'}?mode=ro", uri=True)
        source.backup(target)
    after = customer.chat().header("X-Request-Id")
    assert after is not None
    log = server.data_dir / "access.log"
    eventually(lambda: log.exists() and after in log.read_text(), seconds=5)

    too_early = missing_charges(copied / "tollway.db", log)
    verified = run_tollway("ledger", "verify", "--data-dir", str(copied))
    told = missing_charges(copied / "tollway.db", log)

    assert (too_early.returncode, too_early.stdout) == (1, "")
    assert "Run `tollway ledger verify` on this directory first" in too_early.stderr
    assert verified.status == 0, verified.stderr
    assert told.stdout == f"{customer.account_id} 15\n"
