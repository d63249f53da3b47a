from pathlib import Path

import pytest
from tests.support.fake_upstream import FakeUpstream
from tests.support.node import run_node

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ apiKey: "x", baseURL: process.env.BASE_URL, maxRetries: 0 });
const answer = await client.chat.completions.create({
  model: "m1",
  max_tokens: 1,
  messages: [{ role: "user", content: "Hello!" }],
});
console.log(answer.choices[0].message.content);
"""


@pytest.mark.node
def test_a_script_runs_with_the_openai_sdk(tmp_path: Path) -> None:
    script = tmp_path / "ask.mjs"
    script.write_text(SCRIPT)

    with FakeUpstream() as upstream:
        ran = run_node(script, BASE_URL=upstream.base_url)

    assert ran.stderr == ""
    assert ran.stdout == "Hello\n"
