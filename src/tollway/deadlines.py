"""How long an upstream may take."""

from msgspec import Struct


class Deadlines(Struct, frozen=True, gc=False):
    """Seconds. `first_byte` runs until anything of the reply is there, `between_chunks` from byte
    to byte."""

    connect: float = 3.0
    first_byte: float = 120.0
    between_chunks: float = 60.0
    total: float = 900.0
