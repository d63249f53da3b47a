import os
import tempfile

import hypothesis
import pytest
from tests.support.scratch import scratch_directory

# How long an example takes is the machine's business, which may be busy with something else.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

if "TMPDIR" not in os.environ and (scratch := scratch_directory()):
    os.environ["TMPDIR"] = tempfile.tempdir = scratch  # of the processes that tests start, too


@pytest.fixture(scope="session", autouse=True)
def kept_bytecode(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Some hundred processes are started. Where the environment keeps no bytecode, as containers'
    images set it, each would compile all that it imports: twice the CPU of a server's start."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))
