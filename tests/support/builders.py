"""Small builders: a test names what matters to it, the rest is plausible and fixed."""

import json
from typing import Any

MODEL = "m1"


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
