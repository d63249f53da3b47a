import subprocess
import sys

PROGRAM = """
import ctypes, sqlite3, _sqlite3
from tollway import process
accepted = process.spare_sqlite_its_statistics() if {spare} else None
with sqlite3.connect(":memory:") as connection:
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (?)", ("much " * 1000,))
    (read,) = connection.execute("SELECT x FROM t").fetchone()
    memory = ctypes.CDLL(getattr(_sqlite3, '__file__', None)).sqlite3_memory_used()
print(accepted, len(read), memory > 0)
"""


def told(*, spare: bool) -> str:
    """In a process of its own: it holds for all of one."""
    program = PROGRAM.format(spare=spare)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_sqlite_counts_no_memory_and_works_as_before() -> None:
    assert told(spare=False) == "None 5000 True"
    assert told(spare=True) == ("True 5000 False" if sys.platform == "linux" else "False 5000 True")
