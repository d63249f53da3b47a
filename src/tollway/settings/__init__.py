"""Every setting: its key, type, range, default and meaning, and how a file of them is read.

Reading resolves what depends on something else (a tier's price, a secret kept in the environment)
and refuses what cannot be served with the key's path and the mend, so that what `load_settings`
returns can be used as it is.

The shortest useful file has one line: `embedded.gguf = "model.gguf"` serves that file as
`local/model`.

values.py        what a value may be beyond its type: secrets, addresses, ranges, names
tables.py        the tables of the file, key for key
settings.py      what becomes of them: `Settings`, `Model`
reading.py       reads a file, table by table
references.py    looks up what `env:NAME` and `file:PATH` stand for
checks.py        what servers and upstreams must be beyond their types
models.py        a model's table -> the `Model` on offer
mistakes.py      what is wrong, and the mend
command_line.py  where the file is, and what goes before it
"""

from tollway.settings.command_line import CommandLine
from tollway.settings.reading import load_settings
from tollway.settings.references import resolve_address
from tollway.settings.settings import Model, ServedBy, Settings
from tollway.settings.tables import SECTIONS, Embedded, Limits, Server, Upstream
from tollway.settings.values import EMBEDDED, DialectName, Parameter, Secret, StoreAddress

__all__ = [
    "EMBEDDED",
    "SECTIONS",
    "CommandLine",
    "DialectName",
    "Embedded",
    "Limits",
    "Model",
    "Parameter",
    "Secret",
    "ServedBy",
    "Server",
    "Settings",
    "StoreAddress",
    "Upstream",
    "load_settings",
    "resolve_address",
]
