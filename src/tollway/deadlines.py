"""How long an upstream may take."""

from msgspec import Struct


class Deadlines(Struct, frozen=True, gc=False):
    """`first_byte_seconds` runs until anything of the reply is there, `between_chunks_seconds` from
    byte to byte."""

    connect_seconds: float = 3.0
    first_byte_seconds: float = 120.0
    between_chunks_seconds: float = 60.0
    total_seconds: float = 900.0
