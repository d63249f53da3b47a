"""Small builders: a test names what matters to it, the rest is plausible and fixed."""

import base64
import json
from typing import Any

MODEL = "m1"

# As much of each as tells what it is.
PNG = b"\x89PNG\r\n\x1a\n" + bytes(25)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
GIF = b"GIF89a" + bytes(20)
WEBP = b"RIFF\x1a\x00\x00\x00WEBPVP8L" + bytes(20)


def data_url(image: bytes = PNG, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def image_part(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url() if url is None else url}}


def message(
    content: object = "Why did the Tay Bridge fall?", role: str = "user", **fields: object
) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def chat_body(**overrides: object) -> dict[str, Any]:
    """A valid chat request. An override of `...` takes the field out."""
    body: dict[str, Any] = {"model": MODEL, "messages": [message()], **overrides}
    return {name: value for name, value in body.items() if value is not ...}


def chat_bytes(**overrides: object) -> bytes:
    return json.dumps(chat_body(**overrides)).encode()


def a_tool(name: str = "add", **parameters: object) -> dict[str, Any]:
    """A function tool; `parameters` are its JSON-schema properties, two integers if none are
    named."""
    properties = parameters or {"a": {"type": "integer"}, "b": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def an_id(prefix: str, number: int = 1) -> str:
    """Of the same shape as `tollway.clock.new_id` makes, and in the order of `number`."""
    return f"{prefix}_{number:032x}"
