"""The program of the embedded model's own process: `python -m tollway.upstreams.embedded.runner`.

A process of its own keeps a native crash or hang of llama.cpp out of the gateway, and makes
stopping safe. It reads one line of JSON from stdin (`RunnerSettings` of `process.py`), serves on a
random loopback port, and writes one line of JSON to stdout, `{"address": "http://127.0.0.1:PORT"}`,
when the model is loaded. After that, stdin tells only one thing: when it ends, the gateway is gone,
and so is this process.

It imports nothing of Tollway: it starts faster, and it cannot be broken by what it does not use.
"""

# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (xllamacpp is a native module without types.)

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

import xllamacpp

PR_SET_PDEATHSIG = 1


def main() -> None:
    _obey_the_parent()
    answers = _keep_stdout_for_the_parent()
    settings: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_when_stdin_ends, daemon=True).start()
    server = xllamacpp.Server(_params(settings))
    os.write(answers, json.dumps({"address": server.listening_address}).encode() + b"\n")
    while True:
        signal.pause()


def _obey_the_parent() -> None:
    # Ctrl-C goes to everyone in the terminal's group, and systemd's SIGTERM to everyone in the
    # service's. The gateway decides when the model stops: its last streams may still be running. It
    # does so with SIGKILL, which ends the process at once even while C++ code holds the
    # interpreter; unwinding Python around a live stream took 30 s.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # The end of stdin says the same, but only to a thread that gets to run.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_stdout_for_the_parent() -> int:
    # Whatever the native code prints must not be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def _exit_when_stdin_ends() -> None:
    # Not through sys.stdin: its lock, held by this thread, would turn any other exit into a fatal
    # error.
    while os.read(0, 4096):
        pass
    os._exit(0)


def _params(settings: dict[str, Any]) -> Any:
    params: Any = xllamacpp.CommonParams()
    params.model.path = settings["model_path"]
    params.model_alias = {settings["model_alias"]}
    params.n_ctx = (
        settings["context_length"] * settings["parallel"]
    )  # the total; llama.cpp divides it
    params.n_parallel = settings["parallel"]
    # A prompt is read in pieces of this size, and between two of them the other slots get a token
    # each. With the default of 2048 the reading of 1,500 tokens held up every other stream for 13
    # s; with 256 for 2.6 s, and took no longer.
    params.n_batch = 256
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.use_jinja = True
    if settings["chat_template"] is not None:
        params.chat_template = settings["chat_template"]
    params.prefill_assistant = (
        False  # a conversation that ends with the assistant gets a new turn, as OpenAI gives it
    )
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["api_key"]]
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = True
    # Fitting loads the model twice, which is a third of the start, and may shorten the context
    # that was configured without a word.
    params.fit_params = False
    params.cache_ram_mib = 0  # the default is a prompt cache of up to 8 GiB
    params.verbosity = 1
    params.sse_ping_interval = 15
    return params


if __name__ == "__main__":
    main()
