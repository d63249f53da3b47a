"""Every request that held credit has a receipt, written with its settlement, from which its charge
can be computed again."""

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from tests.support.answers import openai_error, reply, stream
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer, run_tollway

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_a_receipt_says_what_was_asked_used_and_charged(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Hello there.", input_tokens=25, output_tokens=80).delayed(0.05))

    answered = customer.chat(("X-Request-Id", "mine-7"), max_tokens=500)

    receipt = customer.receipt_of(answered)
    assert receipt["id"] == answered.header("x-request-id")
    assert receipt["object"] == "receipt"
    assert receipt["accountId"] == customer.account_id
    assert receipt["tokenId"] == customer.token_id
    assert receipt["model"] == "acme/parrot"
    assert receipt["upstream"] == "gpu-1"
    assert receipt["upstreamId"] == f"chatcmpl-fake{upstream.last.number:08d}"
    assert receipt["clientRequestId"] == "mine-7"
    assert receipt["status"] == "completed"
    assert TIME.fullmatch(receipt["createdAt"])
    assert TIME.fullmatch(receipt["finishedAt"])
    assert receipt["createdAt"] <= receipt["finishedAt"]
    assert receipt["usage"] == {
        "prompt_tokens": 25,
        "completion_tokens": 80,
        "total_tokens": 105,
        "source": "upstream",
        "cached_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert receipt["rates"] == {
        "prompt": 1_000_000,
        "completion": 2_000_000,
        "cached_prompt": 1_000_000,
        "reasoning": 2_000_000,
    }
    assert receipt["credits"]["consumed"] == 25 + 2 * 80
    assert receipt["credits"]["shortfall"] == 0
    assert receipt["credits"]["remaining"] == 100_000 - 185
    assert receipt["credits"]["reserved"] > 2 * 500
    assert 50 <= receipt["timings"]["firstTokenMs"] <= receipt["timings"]["totalMs"] < 5000
    assert receipt["attempts"][0]["upstream"] == "gpu-1"
    assert receipt["attempts"][0]["status"] == 200


def test_a_receipt_can_be_read_when_a_stream_shows_its_end(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b", "c"], input_tokens=9))

    with customer.begin_chat(stream=True) as client:
        head = client.read_head()
        events = client.read_events(7)  # role, three texts, finish, credits and the end
        receipt = customer.receipt(head.header("x-request-id") or "")

    assert events[-1].data == "[DONE]"
    assert receipt["credits"]["consumed"] == 15


def test_a_request_that_failed_has_a_receipt_of_nothing(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(openai_error(500, "No."))

    receipt = customer.receipt_of(customer.chat())

    assert receipt["status"] == "failed"
    assert receipt["credits"]["consumed"] == 0
    assert receipt["attempts"][0]["status"] == 500


def test_a_refused_request_has_none(server: TollwayServer) -> None:
    customer = a_customer(server, credits=0)

    refused = customer.chat()

    assert refused.status == 402
    assert customer.get(f"/receipts/{refused.header('x-request-id')}").status == 404


@pytest.mark.parametrize("scopes", [["llm-all"], ["account"]])
def test_a_receipt_is_its_accounts_alone(
    customer: Customer, server: TollwayServer, scopes: list[str]
) -> None:
    request_id = customer.chat().header("x-request-id")

    owner = customer.with_token(scopes=scopes)
    stranger = a_customer(server, scopes=scopes)

    assert owner.get(f"/receipts/{request_id}").status == 200
    theirs = stranger.get(f"/receipts/{request_id}")
    unknown = stranger.get("/receipts/req_00000000000000000000000000000000")
    assert theirs.status == unknown.status == 404
    assert theirs.json()["error"]["code"] == "not_found"


def test_a_receipt_names_its_price_and_its_entry_in_the_ledger(
    server: TollwayServer, upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("a", input_tokens=9, output_tokens=3))
    charged = customer.receipt_of(customer.chat())
    upstream.answer(openai_error(500, "No."))
    free = customer.receipt_of(customer.chat())

    with contextlib.closing(sqlite3.connect(server.data_dir / "tollway.db")) as books:
        row = books.execute(
            "SELECT ledger.seq, ledger.hash, holds.price_id FROM ledger JOIN holds"
            " ON holds.id = ledger.ref WHERE ledger.ref = ?",
            (charged["id"],),
        ).fetchone()
    assert (charged["ledger"]["seq"], charged["ledger"]["hash"]) == (row[0], row[1].hex())
    assert charged["priceId"] == free["priceId"] == row[2]
    assert free["ledger"] is None


def test_a_signed_receipt_can_be_checked_by_whoever_has_the_public_key(
    server: TollwayServer, customer: Customer, tmp_path: Path
) -> None:
    request_id = customer.chat().header("x-request-id")
    receipt, key = tmp_path / "receipt.json", tmp_path / "key.json"
    receipt.write_bytes(customer.get(f"/receipts/{request_id}?signed=true").body)
    with customer.client() as client:
        client.request("GET", "/api/v1/receipts/public-key", None)
        key.write_bytes(client.read_reply().body)

    right = run_tollway("receipt", "verify", str(receipt), "--key", str(key))
    receipt.write_text(receipt.read_text().replace('"consumed":', '"consumed":1'))
    wrong = run_tollway("receipt", "verify", str(receipt), "--key", str(key))

    assert (right.status, right.stderr) == (0, "")
    assert right.stdout.startswith("The receipt is as it was signed")
    assert wrong.status == 1
    assert "something in it was changed" in wrong.stderr
    assert "credits at its rates" in wrong.stderr
    assert wrong.stdout == ""


def test_an_operator_shows_a_receipt_and_checks_it_with_the_key_of_the_data_directory(
    server: TollwayServer, customer: Customer, tmp_path: Path
) -> None:
    request_id = customer.chat().header("x-request-id") or ""
    file = tmp_path / "receipt.json"

    shown = server.command("receipt", "show", request_id)
    as_json = server.command("receipt", "show", request_id, "--json")
    file.write_text(server.command("receipt", "show", request_id, "--signed").stdout)

    assert f"request:             {request_id}\n" in shown.stdout
    assert as_json.json() == customer.receipt(request_id)
    assert server.command("receipt", "verify", str(file)).status == 0
    unsigned = tmp_path / "unsigned.json"
    unsigned.write_text(as_json.stdout)
    told = server.command("receipt", "verify", str(unsigned), "--json")
    assert (told.status, len(told.json()["data"])) == (1, 1)


def test_what_cannot_be_checked_is_refused_with_why(tmp_path: Path) -> None:
    nothing, file = tmp_path / "none.json", tmp_path / "receipt.json"
    file.write_text("{}")
    where = ("--data-dir", str(tmp_path / "data"))

    no_key = run_tollway("receipt", "verify", str(file), *where)
    bad_key = run_tollway("receipt", "verify", str(file), "--key", str(file))
    no_file = run_tollway("receipt", "verify", str(file), "--key", str(nothing))

    assert [done.status for done in (no_key, bad_key, no_file)] == [1, 1, 1]
    assert "There is no signing key in" in no_key.stderr
    assert "is not a public key (Ed25519). Put there" in bad_key.stderr
    assert "cannot be read" in no_file.stderr
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_no_receipt_is_refused_by_its_name(
    tmp_path: Path, server: TollwayServer
) -> None:
    file = tmp_path / "tollway.toml"
    file.write_text("[server]\n")

    no_json = server.command("receipt", "verify", str(file))
    no_key = server.command("receipt", "verify", str(file), "--key", str(file))

    assert (no_json.status, no_key.status) == (1, 1)
    assert no_json.stderr.startswith(f"{file} is not valid JSON: ")
    assert "A receipt is kept as `tollway receipt show --signed` prints it." in no_json.stderr
    assert no_key.stderr.startswith(f"{file} is not a public key (Ed25519). ")
    assert "cryptography" not in no_key.stderr


def test_a_receipt_of_another_installation_is_told_whose_key_was_tried(
    server: TollwayServer, customer: Customer, tmp_path: Path
) -> None:
    request_id = customer.chat().header("x-request-id") or ""
    file, data_dir = tmp_path / "receipt.json", tmp_path / "other"
    file.write_text(server.command("receipt", "show", request_id, "--signed").stdout)
    where = ("--data-dir", str(data_dir))
    run_tollway("account", "create", "acme", *where)

    done = run_tollway("receipt", "verify", str(file), *where)

    assert done.status == 1
    assert f"signed it, and the key in {data_dir} is " in done.stderr
    assert "Give the --data-dir of the server that signed it, or" in done.stderr
