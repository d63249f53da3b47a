"""Where what tests write is kept: in memory, where there is enough of it.

A database syncs each commit, and on a busy machine the tests would wait for its disk for most of
their time. What a killed process has written is there either way; what a power cut takes is shown
by disks that tests make fail.
"""

import os
import shutil

ROOM_BYTES_MIN = 4 * 1024**3
_MEMORY = "/dev/shm"  # noqa: S108 (places of one's own are made in it)


def scratch_directory(room_bytes: int = ROOM_BYTES_MIN) -> str | None:
    """None: wherever temporary files are kept. A container has 64 MiB of such memory."""
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= room_bytes:
        return _MEMORY
    return None
