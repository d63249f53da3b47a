"""Images in messages: whole, as data URLs, and nothing else.

An address would have to be fetched for its sender, by Tollway or by the model's server, from where
the sender may not reach; so there is none. Its first bytes are looked at, and its size is known
before anything is sent. Which of the kinds it says that it is does not matter: many programs call
all of theirs a JPEG, and OpenAI looks at the bytes.
"""

import base64

_PREFIX = "data:image/"
_BASE64_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_HEAD_CHARACTERS = 16  # twelve bytes

_KINDS = ("png", "jpeg", "jpg", "gif", "webp")
_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")


def image_fault(url: str, bytes_max: int) -> str | None:
    """What is wrong with it, and the mend; None for an image that may be sent."""
    if not url.startswith(_PREFIX):
        if url.startswith("data:"):
            return "must be an image. Send data:image/png;base64,..., or jpeg, webp or gif"
        return (
            "must be the image itself and not its address, which is never fetched. Send "
            "data:image/png;base64,... with the image in base64"
        )
    kind, separator, data = url.removeprefix(_PREFIX).partition(";base64,")
    if not separator or kind not in _KINDS:
        return "must be a PNG, JPEG, WebP or GIF in base64: data:image/png;base64,..."
    size = _size(data)
    if size is None:
        return "must be whole in base64, with its padding and without line breaks"
    if size > bytes_max:
        return f"has {size} bytes and may have {bytes_max}. Send a smaller image"
    head = base64.b64decode(data[:_HEAD_CHARACTERS])
    is_webp = head.startswith(b"RIFF") and head[8:] == b"WEBP"  # between them is its length
    if not is_webp and not head.startswith(_HEADS):
        return "is no PNG, JPEG, WebP or GIF. Send one of those"
    return None


def _size(data: str) -> int | None:
    """Of what the base64 stands for, in bytes; None where it is not base64."""
    if len(data) % 4 or not data or not data.isascii():
        return None
    without_padding = data.rstrip("=")
    padding = len(data) - len(without_padding)
    if padding > 2 or without_padding.encode().translate(None, _BASE64_ALPHABET):
        return None
    return len(data) // 4 * 3 - padding
