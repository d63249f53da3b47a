"""Rewrites an event of a stream by the pattern learned from the last one like it.

Nearly all events of a stream differ in one string, what was generated: text, reasoning, or a part
of a call's arguments. So when an event has been read, checked and written the plain way (5 us),
what stood around that string is remembered together with what we wrote around it (`Template`), and
an event that matches is rewritten by cutting it out (0.9 us). `test_template.py` shows that both
ways give the same bytes (docs/decisions/0010).
"""

import re

from tollway.wire.events import Chunk, Delta

# What can be cut from one JSON string and put into another as it is: no escape but those that we
# write too, and well-formed UTF-8 (Unicode 3.9, table 3-7).
is_text = re.compile(
    rb'(?:[^"\\\x00-\x1f\x7f-\xff]++|\\["\\bfnrt]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]'
    rb"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}"
    rb"|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})++"
).fullmatch


class Template:
    """What stands around what was generated, in an upstream's events, and what we write around
    it."""

    __slots__ = (
        "after",
        "before",
        "is_reasoning",
        "our_after",
        "our_before",
        "start",
        "tail",
    )

    def __init__(
        self,
        before: bytes,
        after: bytes,
        our_before: bytes,
        our_after: bytes,
        *,
        is_reasoning: bool,
    ) -> None:
        self.is_reasoning = is_reasoning
        self.before = b"data: " + before
        self.after = after + b"\n\n"
        self.our_before = b"data: " + our_before
        self.our_after = our_after + b"\n\n"
        self.start = len(self.before)
        self.tail = len(self.after)

    def several(self, frames: bytes) -> tuple[bytes, int]:
        """What we write between our first `before` and our last `after`, and of how many events it
        is; of none where any of them is different."""
        texts = frames[self.start : -self.tail].split(self.after + self.before)
        if not all(map(is_text, texts)):
            return b"", 0
        return (self.our_after + self.our_before).join(texts), len(texts)

    @classmethod
    def learn(cls, payload: bytes, rewritten: bytes, chunk: Chunk) -> "Template | None":
        """None unless one string was generated, for one choice, and is found exactly once on both
        sides."""
        choice = chunk.choices[0]
        delta = choice.delta
        if (
            len(chunk.choices) != 1
            or delta.role
            or choice.finish_reason
            or choice.logprobs is not None
            or chunk.usage is not None
        ):
            return None
        keys, generated = _generated(delta)
        if not generated:
            return None
        text = generated.encode()
        quoted = b'"' + text + b'"'
        if not is_text(text) or payload.count(quoted) != 1 or rewritten.count(quoted) != 1:
            return None
        before, _, after = payload.partition(quoted)
        our_before, _, our_after = rewritten.partition(quoted)
        # A server that escapes what need not be escaped may have the same text plain elsewhere. And
        # an event of several lines is not written as its data reads.
        if not before.rstrip().endswith(keys) or payload.find(b"\n") >= 0:
            return None
        return cls(
            before + b'"',
            b'"' + after,
            our_before + b'"',
            b'"' + our_after,
            is_reasoning=delta.is_reasoning(),
        )


def _generated(delta: Delta) -> tuple[tuple[bytes, ...], str | None]:
    """The one string of a delta that has no other, and what it may be written behind. Of a call
    only where nothing is said of it but more arguments."""
    calls = delta.tool_calls
    if not calls:
        if delta.content:
            return (b'"content":',), delta.content
        return (b'"reasoning_content":', b'"reasoning":'), delta.reasoning_content or None
    part = calls[0]
    if len(calls) > 1 or part.id or not part.function:
        return (), None
    return (b'"arguments":',), None if part.function.name else part.function.arguments
