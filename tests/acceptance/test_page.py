"""The page that Tollway implements (LLM Access), line by line: only the host, the token and the
model are others. The model is the embedded one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.acceptance.conftest import EMBEDDED_MODEL
from tests.support.curl import run_curl
from tests.support.customer import Customer, a_customer
from tests.support.http import Reply
from tests.support.node import run_node
from tests.support.server import TollwayServer

pytestmark = pytest.mark.model

CHAT = """curl -X POST https://api.bluenexus.ai/api/v1/chat/completions \\
  -H "Authorization: Bearer ACCESS_TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "bluenexus/glm-4.7-flash-tee",
    "messages": [
      {"role": "system", "content": "You are a helpful assistant."},
      {"role": "user", "content": "Explain MCP in one paragraph."}
    ],
    "temperature": 0.7,
    "max_tokens": 500
  }'"""

STREAM = """curl -X POST https://api.bluenexus.ai/api/v1/chat/completions \\
  -H "Authorization: Bearer ACCESS_TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "bluenexus/glm-4.7-flash-tee",
    "messages": [
      {"role": "user", "content": "Write a haiku about APIs"}
    ],
    "stream": true
  }'"""

MODELS = """curl https://api.bluenexus.ai/api/v1/models \\
  -H "Authorization: Bearer ACCESS_TOKEN\""""

PYTHON = """from openai import OpenAI

client = OpenAI(
    api_key="YOUR_BLUENEXUS_TOKEN",
    base_url="https://api.bluenexus.ai/api/v1"
)

response = client.chat.completions.create(
    model="bluenexus/glm-4.7-flash-tee",
    messages=[{"role": "user", "content": "Hello!"}]
)

print(response.choices[0].message.content)
"""

TYPESCRIPT = """import OpenAI from "openai";

const client = new OpenAI({
  apiKey: "YOUR_BLUENEXUS_TOKEN",
  baseURL: "https://api.bluenexus.ai/api/v1",
});

const response = await client.chat.completions.create({
  model: "bluenexus/glm-4.7-flash-tee",
  messages: [{ role: "user", content: "Hello!" }],
});

console.log(response.choices[0].message.content);
"""


@pytest.fixture
def brief_customer(embedded_server: TollwayServer) -> Customer:
    """Where the page names no max_tokens, a model this small now and then talks on to the end of
    its context, for minutes. One credit pays for some 240 tokens, and the page stays as it is."""
    return a_customer(embedded_server, credits=1, model=EMBEDDED_MODEL)


def with_ours(text: str, customer: Customer) -> str:
    return (
        text.replace("https://api.bluenexus.ai/api/v1", customer.server.base_url)
        .replace("ACCESS_TOKEN", customer.token)
        .replace("YOUR_BLUENEXUS_TOKEN", customer.token)
        .replace("bluenexus/glm-4.7-flash-tee", customer.model)
    )


def assert_credits_are_told(reply: Reply, customer: Customer) -> None:
    consumed = int(reply.header("X-Credits-Consumed") or "")
    assert consumed > 0
    assert reply.header("X-Credits-Remaining") == str(100_000 - consumed)
    assert customer.balance == 100_000 - consumed


def test_the_curl_of_a_chat_completion(embedded_customer: Customer) -> None:
    reply = run_curl(with_ours(CHAT, embedded_customer))

    assert reply.status == 200
    body = reply.json()
    assert re.fullmatch(r"chatcmpl-\w+", body["id"])
    assert body["object"] == "chat.completion"
    assert type(body["created"]) is int
    assert body["model"] == embedded_customer.model
    assert body["choices"][0]["index"] == 0
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert len(body["choices"][0]["message"]["content"]) > 20
    assert body["choices"][0]["finish_reason"] in ("stop", "length")
    used = body["usage"]
    assert used["prompt_tokens"] > 10
    assert 0 < used["completion_tokens"] <= 500
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert_credits_are_told(reply, embedded_customer)


def test_the_curl_of_a_stream(brief_customer: Customer) -> None:
    reply = run_curl(with_ours(STREAM, brief_customer))

    assert reply.status == 200
    assert (reply.header("content-type") or "").startswith("text/event-stream")
    *chunks, done = [event for event in reply.events if event.data is not None]
    assert done.data == "[DONE]"
    first, *others = [chunk.json() for chunk in chunks]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert len({chunk["id"] for chunk in (first, *others)}) == 1
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in others)
    assert others[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_curl_of_the_models(embedded_customer: Customer) -> None:
    reply = run_curl(with_ours(MODELS, embedded_customer))

    assert reply.status == 200
    assert [model["id"] for model in reply.json()["data"]] == [embedded_customer.model]


def test_the_curl_that_the_first_start_prints(embedded_server: TollwayServer) -> None:
    """Nobody waits for minutes for their first reply: a small model may not find an end."""
    printed = embedded_server.stdout.partition("Try it:\n")[2]

    reply = run_curl(printed.strip())

    assert reply.status == 200
    assert reply.json()["choices"][0]["message"]["content"]
    assert '"max_tokens": 200' in printed
    assert reply.json()["usage"]["completion_tokens"] <= 200


def test_the_snippet_in_python(brief_customer: Customer) -> None:
    snippet = with_ours(PYTHON, brief_customer)

    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.node
def test_the_snippet_in_typescript(brief_customer: Customer, tmp_path: Path) -> None:
    script = tmp_path / "page.mjs"
    script.write_text(with_ours(TYPESCRIPT, brief_customer))

    done = run_node(script)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.node
def test_the_sdk_for_node_streams(embedded_customer: Customer) -> None:
    done = run_node(
        Path(__file__).parent / "node" / "stream.mjs",
        BASE_URL=embedded_customer.server.base_url,
        TOKEN=embedded_customer.token,
        MODEL=embedded_customer.model,
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["text"]
    assert seen["finishReason"] in ("stop", "length")
    assert seen["usage"]["credits_consumed"] == 100_000 - embedded_customer.balance
    assert seen["reserved"] >= seen["usage"]["credits_consumed"]
    assert seen["refused"] == {
        "status": 401,
        "name": "AuthenticationError",
        "code": "invalid_api_key",
    }
