"""Who servers are run as: never the administrator, as in an installation."""

import os
import pwd


def without_override() -> list[str]:
    """A command that runs another whom the modes of files bind, as they do not bind root."""
    return [] if os.getuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def ordinary_user() -> pwd.struct_passwd | None:
    """To become, for a test that is run by root; None where it is somebody already."""
    if os.getuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("there is no ordinary user to run a server as")
