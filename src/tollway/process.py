"""What a server asks of the operating system for its process: a port, signals, memory, and where
its log goes."""

import _sqlite3
import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from typing import NoReturn

from tollway.errors import StartError
from tollway.settings import Settings

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SQLITE_OK, _SQLITE_CONFIG_MEMSTATUS = 0, 9  # of sqlite3.h

log = logging.getLogger("tollway")


def configure_logging() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("tollway").setLevel(logging.INFO)


def bind(
    settings: Settings, *, shared: bool = False, as_: socket.socket | None = None
) -> socket.socket:
    """Binds the port without listening, so that a taken port fails before anything is fetched.
    `shared` sets SO_REUSEPORT; `as_` is a socket whose port to take."""
    host, port = settings.server.host, settings.server.port
    if as_ is not None:
        port = as_.getsockname()[1]
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another with --host and --port."
        ) from error
    return listener


def stop_on_signals() -> asyncio.Event:
    """The first SIGTERM or Ctrl-C stops gracefully; another ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = 0  # and not the event, which others may set

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            stop_at_once()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping


def stop_at_once() -> NoReturn:
    log.error("stopped at once by a second signal")
    os._exit(130)


def calm_the_collector() -> None:
    """What is there by now stays, so the garbage collector need not walk it again and again; and a
    request leaves few cycles behind. A profile showed 5 % of a request's CPU in it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def refuse_long_numbers() -> None:
    """Reading and writing an integer takes the square of its digits: 4 MiB of such as Python
    allows, with 4,300 digits each, 400 ms. This is the least that may be set."""
    sys.set_int_max_str_digits(sys.int_info.str_digits_check_threshold)


def keep_large_buffers() -> None:
    """A conversation of 1 MiB is copied some six times on its way, and glibc would give each of
    these buffers back to the system and have the next one's pages cleared anew: a quarter of that
    request's CPU (benchmarks, --only large). Now buffers of up to 16 MiB are taken from the heap,
    of which up to 32 MiB stay when they are free. Another C library has no such call."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 16 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 32 * 1024 * 1024)


def spare_sqlite_its_statistics() -> bool:
    """Before any connection is opened. SQLite counts the memory that it uses, under a lock which
    each piece of it takes, and nobody here asks how much it is: without, a charge takes the writer
    a tenth less (benchmarks.steps). Returns whether it is so now.

    The locks of its connections would be as many, and sparing them was no gain beside this."""
    if sys.platform != "linux":  # elsewhere a C function's variable arguments may go another way
        return False
    # Whichever SQLite the module was built with: its symbols are looked up from there.
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        library.sqlite3_shutdown()  # the import has started it
        accepted = library.sqlite3_config(_SQLITE_CONFIG_MEMSTATUS, 0) == _SQLITE_OK
        library.sqlite3_initialize()
    except AttributeError:  # it is linked in, and names none of its functions
        return False
    return accepted
