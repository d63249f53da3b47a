"""What a program that writes code sends to a model: what it may do, and all that was done and seen
until here."""

import json
from typing import Any

TOOLS = 20
SYSTEM_LINES = 60
RESULT_LINES = 60

_RULE = "- Read the file before you change it, and run the tests that concern it after.\n"
_THOUGHT = "The limit is read in two places. I look at the second one before I change the first."
_ABOUT = (
    "Searches the files below a folder for a regular expression and returns the lines that match, "
    "each with its file and its number. Takes a glob of names, and how many lines to show around."
)
_CODE = (
    "    def load_of(self, span: str) -> int:\n"
    '        """In tons, of a span by its name."""\n'
    "        for name, tons in self._spans:\n"
    "            if name == span and tons > 0:\n"
    "                return tons\n"
    "        raise Fallen(f\"no span '{span}' stands\")\n"
)


def agent_request(model: str, turns: int, *, nulls: bool = False) -> bytes:
    """After so many calls of tools, each with its result: 2.7 KB each, and 23 KB beside them. As
    both SDKs write it, without spaces; with `nulls` as they send back what OpenAI replied."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": _RULE * SYSTEM_LINES},
        {"role": "user", "content": "The bridge falls when the train is longer than a span."},
    ]
    for turn in range(turns):
        id_ = f"call_{turn:06x}"
        arguments = json.dumps({"path": f"src/bridge/span_{turn}.py", "limit": RESULT_LINES})
        function = {"name": f"tool_{turn % TOOLS}", "arguments": arguments}
        call = {"id": id_, "type": "function", "function": function}
        asked = {"role": "assistant", "content": _THOUGHT, "tool_calls": [call]}
        if nulls:
            asked |= {"content": None, "refusal": None, "annotations": []}
        messages += (
            asked,
            {"role": "tool", "tool_call_id": id_, "content": _CODE * (RESULT_LINES // 6)},
        )
    request = {
        "model": model,
        "messages": messages,
        "tools": [_tool(number) for number in range(TOOLS)],
        "temperature": 0.2,
        "max_tokens": 64,
        "stream": False,
    }
    return json.dumps(request, separators=(",", ":")).encode()


def _tool(number: int) -> dict[str, Any]:
    properties = {
        name: {"type": "string", "description": f"The {name} to search. {_THOUGHT}"}
        for name in ("path", "pattern", "glob", "limit")
    }
    parameters = {
        "type": "object",
        "properties": properties,
        "required": ["path", "pattern"],
        "additionalProperties": False,
    }
    about = f"{_ABOUT} {_THOUGHT}"
    function = {"name": f"tool_{number}", "description": about, "parameters": parameters}
    return {"type": "function", "function": function}
