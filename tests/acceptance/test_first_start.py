"""A first start, before there is anything to serve."""

import os
import signal
import socket
from pathlib import Path

from tests.support.customer import eventually
from tests.support.server import TollwayServer, config_for


def test_ctrl_c_during_the_fetch_of_the_model_ends_it_with_a_word(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_index:
        url = f"http://127.0.0.1:{silent_index.getsockname()[1]}/simple"
        only_there = {"PIP_INDEX_URL": url, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
        server = TollwayServer(tmp_path / "data", env=only_there)
        server.launch()
        eventually(lambda: "Fetching the embedded model" in server.stdout, 30.0)

        os.killpg(server.pid, signal.SIGINT)

        assert server.wait(10) == 128 + signal.SIGINT
    assert server.stderr == "Stopped before it served anything.\n"
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_ctrl_c_while_its_modules_are_read_ends_it_with_a_word(tmp_path: Path) -> None:
    """As one of them, found before the library of that name, interrupts its own reading."""
    interrupted = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "uvicorn.py").write_text(interrupted)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    server = TollwayServer(
        tmp_path / "data", config_for("http://127.0.0.1:9/v1"), env={"PYTHONPATH": path}
    )

    server.launch()

    assert server.wait(10) == 128 + signal.SIGINT
    assert server.stderr == "Stopped before it served anything.\n"
