"""The operator's commands do what they say whether or not a server runs, and a running server sees
their effect at once."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.answers import reply
from tests.support.customer import Customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import Finished, TollwayServer, config_for, run_tollway
from tests.support.users import without_override

NOWHERE = "http://127.0.0.1:1/v1"
KEY_IN_FILE = 'api_key = "file:gpu.key"'

COMMANDS: list[tuple[str, list[str]]] = [
    ("serve", ["--config", "--data-dir", "--host", "--port"]),
    ("check", ["--config", "--data-dir", "--json"]),
    ("reload", ["--config", "--data-dir", "--json"]),
    ("account create", ["NAME", "--credits"]),
    ("account list", []),
    ("account show", ["NAME"]),
    ("account freeze", ["NAME"]),
    ("account unfreeze", ["NAME"]),
    ("account set", ["NAME", "--requests-per-minute", "--concurrent"]),
    ("credit top-up", ["ACCOUNT", "AMOUNT", "--reference"]),
    ("credit refund", ["REQUEST_ID", "--amount", "--reason"]),
    ("credit adjust", ["ACCOUNT", "AMOUNT", "--reason"]),
    (
        "token issue",
        [
            "--account",
            "--scope",
            "--name",
            "--expires-in",
            "--model",
            "--requests-per-minute",
            "--spend-cap",
            "--strict",
        ],
    ),
    ("token list", []),
    (
        "token set",
        [
            "ID",
            "--name",
            "--model",
            "--requests-per-minute",
            "--expires-in",
            "--spend-cap",
            "--strict",
            "--no-strict",
        ],
    ),
    ("token revoke", ["ID"]),
    ("receipt show", ["REQUEST_ID", "--signed"]),
    ("receipt verify", ["FILE", "--key"]),
    ("model list", []),
    ("ledger verify", []),
    ("usage", ["--by", "--since", "--until", "--account"]),
]


def assert_refused(done: Finished, why: str) -> None:
    """With why, in one line, and without a trace of Python."""
    assert done.status == 1, done.stderr
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.fixture
def stopped(tmp_path: Path) -> TollwayServer:
    """An installation whose server does not run."""
    return TollwayServer(tmp_path / "data", config_for(NOWHERE))


@pytest.fixture
def acme(stopped: TollwayServer) -> Iterator[TollwayServer]:
    """The same with an account `acme` of 500 credits, and its books in order at the end."""
    stopped.operate("account create", name="acme", credits=500)
    yield stopped
    assert stopped.operate("ledger verify") == {"data": []}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_for_which_the_disk_has_no_room_is_not_taken_for_done(
    acme: TollwayServer, unbuffered: str
) -> None:
    output = ("env", f"PYTHONUNBUFFERED={unbuffered}")
    into_a_full_disk = (*output, "sh", "-c", '"$@" > /dev/full', "sh")
    done = acme.command("account", "show", "acme", through=into_a_full_disk)

    assert_refused(done, "No space left on device. Look whether this was done before")


def test_without_an_output_nothing_is_done(acme: TollwayServer) -> None:
    without_output = ("sh", "-c", '"$@" >&-', "sh")
    in_data_dir = ("--data-dir", str(acme.data_dir))
    done = run_tollway("token", "issue", "--account", "acme", *in_data_dir, through=without_output)

    assert_refused(done, "The standard output is closed, so nothing was done.")
    assert acme.operate("token list") == {"data": []}


def test_an_argument_that_is_not_utf_8_is_refused_as_that(server: TollwayServer) -> None:
    done = server.command("account", "show", "caf\udce9")

    assert_refused(done, "The argument caf\\xe9 is not UTF-8.")


def balance_of_acme(installation: TollwayServer) -> int:
    return installation.operate("account show", name="acme")["creditBalance"]


# --- while a server runs --------------------------------------------------------------------------


def test_a_top_up_can_be_spent_at_once(server: TollwayServer, customer: Customer) -> None:
    before = customer.balance

    done = server.command("credit", "top-up", customer.account_id, "70", "--reference", "i-1")

    assert done.status == 0, done.stderr
    assert customer.balance == before + 70
    newest = customer.get("/credit-transactions").json()["data"][0]
    again = server.command(
        "credit", "top-up", customer.account_id, "70", "--reference", "i-1", "--json"
    )
    assert again.json() == newest
    assert customer.balance == before + 70


def test_a_frozen_account_is_refused_at_once_and_admitted_again(
    server: TollwayServer, upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Yes."))

    frozen = server.command("account", "freeze", customer.account_id)
    refused = customer.chat()
    unfrozen = server.command("account", "unfreeze", customer.account_id)
    admitted = customer.chat()

    assert (frozen.status, unfrozen.status) == (0, 0)
    assert (refused.status, refused.json()["error"]["code"]) == (403, "account_frozen")
    assert admitted.status == 200


def test_a_revoked_token_is_refused_at_once(server: TollwayServer, customer: Customer) -> None:
    assert customer.get("/models").status == 200

    done = server.command("token", "revoke", customer.token_id)

    assert done.stdout.startswith(f"Revoked {customer.token_id} (test) of ")
    assert customer.get("/models").status == 401


def test_a_limit_holds_from_the_next_request_on(
    server: TollwayServer, upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Yes."))

    server.command("account", "set", customer.account_id, "--requests-per-minute", "1")

    assert [customer.chat().status, customer.chat().status] == [200, 429]


def test_a_refund_gives_back_what_the_request_cost_once(
    server: TollwayServer, upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Hello.", input_tokens=9, output_tokens=3))
    before = customer.balance
    request_id = customer.chat().header("X-Request-Id")
    assert request_id is not None

    too_much = server.command("credit", "refund", request_id, "--amount", "16")
    done = server.command("credit", "refund", request_id, "--reason", "garbled", "--json")
    again = server.command("credit", "refund", request_id)

    assert_refused(too_much, "was charged 15 credits: 16 cannot be refunded")
    assert done.json()["amount"] == 15
    assert customer.balance == before
    assert customer.get("/credit-transactions").json()["data"][0] == done.json()
    assert_refused(again, "was refunded 15 credits on")


def test_what_an_account_has_used_is_summed_up_at_once(
    server: TollwayServer, upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Hello.", input_tokens=9, output_tokens=3), times=2)
    for _ in range(2):
        customer.chat()

    of_account = ("usage", "--account", customer.account_id)
    by_model = server.command(*of_account, "--by", "model", "--since", "1h")
    by_day = server.command(*of_account, "--by", "day", "--json").json()["data"]
    long_ago = server.command(*of_account, "--since", "2001-01-01", "--until", "2001-01-02")

    head, row = by_model.stdout.splitlines()
    assert head == "model\trequests\tprompt tokens\tcompletion tokens\tcredits"
    assert row == "acme/parrot\t2\t18\t6\t30"
    assert sum(day["credits"] for day in by_day) == 30
    assert long_ago.stdout.count("\n") == 1


def test_the_models_are_listed_as_the_api_lists_them(
    server: TollwayServer, customer: Customer
) -> None:
    listed = server.command("model", "list", "--json").json()

    assert listed["data"] == customer.get("/models").json()["data"]


def test_a_token_that_was_issued_works_at_once(server: TollwayServer, customer: Customer) -> None:
    done = server.command("token", "issue", "--account", customer.account_id)

    assert done.status == 0
    secret = done.stdout.removesuffix("\n")
    assert secret.startswith("tw_")
    assert secret not in done.stderr
    listed = server.command("token", "list")
    assert secret not in listed.stdout
    assert Customer(server, customer.account_id, "", secret).get("/models").status == 200


def test_the_ledger_is_verified_while_the_server_runs(server: TollwayServer) -> None:
    assert server.command("ledger", "verify", "--json").json() == {"data": []}


# --- while none runs ------------------------------------------------------------------------------


def test_the_ledger_is_verified_while_none_runs(acme: TollwayServer) -> None:
    assert acme.command("ledger", "verify").stdout == "The ledger is whole.\n"


def test_what_was_done_without_a_server_is_there_when_one_starts(acme: TollwayServer) -> None:
    token = acme.issue_token("--strict", account="acme")
    acme.command("credit", "top-up", "acme", "20", "--reference", "i-1")

    with acme:
        customer = Customer(acme, "acme", "", token)
        me = customer.get("/accounts/me").json()
        again = acme.command("credit", "top-up", "acme", "20", "--reference", "i-1", "--json")

    assert (me["name"], me["creditBalance"]) == ("acme", 520)
    assert again.json()["balance"] == 520
    assert balance_of_acme(acme) == 520


def test_a_top_up_that_was_made_before_says_that_nothing_was_added(acme: TollwayServer) -> None:
    once = ("credit", "top-up", "acme", "20", "--reference", "2026-11-acme")
    first = acme.command(*once)
    second = acme.command(*once)
    third = acme.command(*once, "--json")

    assert first.stderr == ""
    assert (second.status, second.stdout) == (0, first.stdout)
    assert second.stderr == third.stderr
    assert second.stderr == (
        "Nothing was added now: the reference 2026-11-acme was used before, for this top-up.\n"
    )
    assert balance_of_acme(acme) == 520


def test_the_secret_of_a_token_is_no_id_and_is_not_repeated(acme: TollwayServer) -> None:
    secret = acme.issue_token(account="acme")
    (token,) = acme.operate("token list")["data"]

    refused = acme.command("token", "revoke", secret)

    assert_refused(refused, f"This is a token's secret, and its id is meant: {token['id']}.")
    assert secret not in refused.stderr


@pytest.mark.parametrize(
    ("name", "shown"), [("anna\r", "'anna\\r'"), ("\ufeffanna", "'\\ufeffanna'")]
)
def test_a_name_with_a_character_that_cannot_be_seen_is_refused_and_shows_it(
    acme: TollwayServer, name: str, shown: str
) -> None:
    """As a list has them that was made on Windows."""
    refused = acme.command("account", "create", name)

    assert_refused(refused, f"An account's name has printable characters alone, and {shown} has")


def test_an_adjustment_may_be_negative_but_the_balance_may_not(acme: TollwayServer) -> None:
    taken = acme.command("credit", "adjust", "acme", "-50", "--reason", "typo")
    too_much = acme.command("credit", "adjust", "acme", "-451", "--reason", "typo")

    assert taken.stdout.startswith("adjustment: typo: -50 credits, balance 450 ")
    assert_refused(too_much, "The account has 450 credits available and this would take 451.")
    assert balance_of_acme(acme) == 450


def test_a_limit_is_set_and_taken_back(acme: TollwayServer) -> None:
    acme.command("account", "set", "acme", "--requests-per-minute", "5", "--concurrent", "2")
    done = acme.command("account", "set", "acme", "--requests-per-minute", "default")

    assert "requests a minute:   as configured\nrequests at a time:  2\n" in done.stdout


def test_a_token_is_changed_without_a_server_and_the_secret_stays(acme: TollwayServer) -> None:
    secret = acme.issue_token("--spend-cap", "400", "--model", "acme/parrot", account="acme")
    (before,) = acme.operate("token list")["data"]

    done = acme.command(
        *("token", "set", before["id"], "--name", "second year", "--spend-cap", "900"),
        *("--model", "all", "--requests-per-minute", "7", "--expires-in", "3600", "--strict"),
    )
    back = acme.command(
        *("token", "set", before["id"], "--requests-per-minute", "default", "--json"),
        *("--expires-in", "never", "--no-strict", "--model", "acme/parrot"),
    ).json()

    assert done.status == 0, done.stderr
    shown = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert {label: value.strip() for label, value in shown.items()} == {
        "name": "second year",
        "id": before["id"],
        "account": "acme",
        "scopes": "llm-all",
        "models": "all",
        "requests a minute": "7",
        "spend cap": "900 credits, 900 left",
        "strict": "yes",
        "created": before["createdAt"],
        "expires": shown["expires"].strip(),
        "revoked": "no",
    }
    assert shown["expires"].strip() > before["createdAt"]
    assert back == {**before, "name": "second year", "spendCap": 900, "spendCapLeft": 900}
    with acme:
        assert Customer(acme, "acme", "", secret).get("/auth/pat").status == 403
        assert Customer(acme, "acme", "", secret).get("/models").status == 200


def test_the_list_of_tokens_has_their_rate_and_spend_cap(acme: TollwayServer) -> None:
    acme.issue_token("--spend-cap", "400", "--requests-per-minute", "5", account="acme")
    acme.issue_token(account="acme")

    heads, *rows = (line.split("\t") for line in acme.command("token", "list").stdout.splitlines())

    assert heads[-3:] == ["requests a minute", "spend cap", "cap left"]
    assert [row[-3:] for row in rows] == [["5", "400", "400"], ["the account's", "none", "none"]]


def test_a_spend_cap_is_not_given_to_a_token_that_counted_nothing(acme: TollwayServer) -> None:
    acme.issue_token(account="acme")
    (token,) = acme.operate("token list")["data"]

    refused = acme.command("token", "set", token["id"], "--spend-cap", "9")

    assert_refused(refused, "Issue another one with --spend-cap, and revoke this one.")


def test_a_revoked_token_is_not_changed(acme: TollwayServer) -> None:
    acme.issue_token(account="acme")
    (token,) = acme.operate("token list")["data"]
    acme.operate("token revoke", token_id=token["id"])

    refused = acme.command("token", "set", token["id"], "--name", "new")

    assert_refused(refused, f"The token {token['id']} was revoked, for good. Issue another one.")


def test_a_list_without_a_terminal_is_lines_that_other_programs_can_cut(
    acme: TollwayServer,
) -> None:
    heads, row = (line.split("\t") for line in acme.command("account", "list").stdout.splitlines())

    assert heads == ["name", "id", "status", "balance", "held", "created"]
    assert (row[0], row[2:5]) == ("acme", ["active", "500", "0"])


def test_an_id_can_be_copied_from_a_list_on_a_narrow_terminal(acme: TollwayServer) -> None:
    acme.issue_token("--name", "a laptop with a long name", account="acme")
    (token,) = acme.operate("token list")["data"]
    (account,) = acme.operate("account list")["data"]
    on_a_terminal = (sys.executable, "-c", _ON_A_TERMINAL)

    tokens = acme.command("token", "list", through=on_a_terminal).stdout
    accounts = acme.command("account", "list", through=on_a_terminal).stdout

    assert token["id"] in tokens
    assert account["id"] in accounts
    assert (tokens.count("\n"), accounts.count("\n")) == (2, 2)


_ON_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
child, terminal = pty.fork()
if child == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    os.environ["TERM"] = "xterm"
    os.execvp(sys.argv[1], sys.argv[1:])
try:
    while shown := os.read(terminal, 4096):
        os.write(1, shown)
except OSError:  # its other end is closed
    pass
"""


def test_a_list_as_json_has_the_objects_that_the_other_commands_show(acme: TollwayServer) -> None:
    shown = acme.command("account", "show", "acme", "--json").json()

    assert acme.command("account", "list", "--json").json() == {"data": [shown]}


def test_commands_need_no_secret_of_an_upstream(tmp_path: Path) -> None:
    config = config_for(NOWHERE).replace(
        f'"{NOWHERE}"', f'"{NOWHERE}"\napi_key = "env:TOLLWAY_TEST_UNSET"'
    )
    stopped = TollwayServer(tmp_path / "data", config)

    assert stopped.command("account", "create", "acme").status == 0


def test_a_mistyped_data_directory_is_refused_and_not_made(tmp_path: Path) -> None:
    server = TollwayServer(tmp_path / "mistyped")

    refused = server.command("ledger", "verify")

    assert refused.status == 1
    assert "There is no Tollway in" in refused.stderr
    assert not (tmp_path / "mistyped").exists()


def test_an_account_before_the_first_start_says_that_it_makes_the_installation(
    tmp_path: Path,
) -> None:
    where = ("--data-dir", str(tmp_path / "data"))
    first = run_tollway("account", "create", "acme", *where)
    second = run_tollway("account", "create", "other", *where)

    assert (first.status, second.status) == (0, 0)
    assert f"There was no Tollway in {tmp_path / 'data'}, so this made a new one" in first.stderr
    assert first.stdout.startswith("name:                acme\n")
    assert second.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        "account list",
        "account create acme",
        "serve --port 0",
        "check",
        "reload",
        "upstream list",
        "receipt verify /dev/null",
    ],
)
def test_a_folder_that_the_user_may_not_enter_is_refused(tmp_path: Path, arguments: str) -> None:
    data_dir = tmp_path / "locked" / "data"
    data_dir.mkdir(parents=True)
    data_dir.parent.chmod(0)

    where = ("--data-dir", str(data_dir))
    done = run_tollway(*arguments.split(), *where, through=without_override())

    data_dir.parent.chmod(0o700)
    assert_refused(done, "Permission denied. Run this as the user of the server, or with sudo")
    assert str(data_dir) in done.stderr


@pytest.mark.parametrize("arguments", ["account list", "serve --port 0"])
def test_a_database_that_the_user_may_not_open_is_refused(tmp_path: Path, arguments: str) -> None:
    """Another user's, in a folder that one may enter."""
    config = tmp_path / "tollway.toml"
    config.write_text(
        '[[upstreams]]\nname = "gpu-1"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[[models]]\nid = "acme/parrot"\ntier = "budget"\ncontext_length = 4096\n'
        'upstreams = [{ name = "gpu-1" }]\n'
    )
    where = ("--data-dir", str(tmp_path), "--config", str(config))
    run_tollway("account", "create", "alice", *where)
    file = tmp_path / "tollway.db"
    file.chmod(0)

    done = run_tollway(*arguments.split(), *where, through=without_override())

    assert_refused(done, f"The database {file} cannot be opened: unable to open database file. Run")


@pytest.mark.parametrize("arguments", ["account list", "serve --port 0"])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, arguments: str) -> None:
    file = tmp_path / "tollway.db"
    file.write_bytes(b"no database" * 1000)

    done = run_tollway(*arguments.split(), "--data-dir", str(tmp_path))

    assert_refused(done, f"The database {file} cannot be opened: file is not a database. Put a")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("account create acme", "There is an account 'acme' already. Choose another name."),
        ("account show nobody", "There is no account 'nobody'."),
        ("credit refund req_1", "There is no receipt of a request 'req_1'."),
        ("credit adjust acme 0 --reason x", "An adjustment by 0 changes nothing."),
        ("token issue --account acme --scope admin", "one or more of llm-all, account"),
        ("token issue --account acme --model m9", "There is no model 'm9'. The models are acme/"),
        ("token set tok_1 --name new", "There is no token 'tok_1'. `tollway token list` shows"),
        ("token revoke tok_1", "There is no token 'tok_1'. `tollway token list` shows"),
    ],
)
def test_what_is_refused_exits_with_1_and_says_why(
    acme: TollwayServer, arguments: str, why: str
) -> None:
    assert_refused(acme.command(*arguments.split()), why)


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "account create",
        "account set acme",
        "account set acme --requests-per-minute 0",
        "account set acme --concurrent defualt",
        "credit top-up acme 0",
        "credit top-up acme -5",
        "credit top-up acme 5 --refernece x",
        "credit top-up acme many",
        "credit adjust acme -50",
        "credit adjust acme -50 --raeson x",
        "token issue",
        "token set tok_1",
        "token set tok_1 --expires-in 0",
        "token set tok_1 --requests-per-minute never",
        "token set tok_1 --spend-cap none",
        "token set tok_1 --model all --model acme/parrot",
        "serve --port 65536",
        "account list --nonsense",
        "usage --since yesterday",
        "usage --by colour",
    ],
)
def test_wrong_usage_exits_with_2(arguments: str) -> None:
    done = run_tollway(*arguments.split())

    assert done.status == 2
    assert "Usage: " in done.stderr
    assert done.stdout == ""


def test_one_credit_is_told_as_one(acme: TollwayServer) -> None:
    up = acme.command("credit", "top-up", "acme", "1", "--reference", "i-1")
    down = acme.command("credit", "adjust", "acme", "-500", "--reason", "typo")
    shown = acme.command("account", "show", "acme")

    assert up.stdout.startswith("top-up i-1: +1 credit, balance 501 ")
    assert down.stdout.startswith("adjustment: typo: -500 credits, balance 1 ")
    assert "balance:             1 credit\nheld:                0 credits\n" in shown.stdout


def test_a_top_up_that_takes_credits_says_which_command_does() -> None:
    done = run_tollway("credit", "top-up", "acme", "-5")

    assert "at least 1 credit, and this is -5. `tollway credit adjust` takes" in done.stderr


# --- check, help, completion ----------------------------------------------------------------------


def test_check_says_what_would_be_served_and_makes_nothing(stopped: TollwayServer) -> None:
    done = stopped.command("check")
    as_json = stopped.command("check", "--json").json()

    assert done.status == 0
    assert f"upstream gpu-1:      {NOWHERE} without a key\n" in done.stdout
    assert "acme/parrot\tparrot\t1000\t2000\t100000\t4096\tgpu-1\n" in done.stdout
    assert as_json["models"][0]["pricing"] == {
        "prompt": 1000,
        "completion": 2000,
        "cached_prompt": 1000,
        "reasoning": 2000,
    }
    assert not stopped.data_dir.exists()


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_configuration_that_cannot_be_served_is_refused_by_its_key(
    tmp_path: Path, command: str
) -> None:
    config = tmp_path / "tollway.toml"
    config.write_text('[[upstreams]]\nname = "a"\nbase_url = "http://x"\napi_key = "env:NO_KEY"')

    done = run_tollway(command, "--config", str(config), "--data-dir", str(tmp_path / "data"))

    assert_refused(done, "upstreams[0].api_key: the environment variable NO_KEY is not set")
    assert not (tmp_path / "data").exists()


def test_a_key_that_the_user_may_not_read_is_not_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "gpu.key").write_text("secret")
    (tmp_path / "gpu.key").chmod(0)
    config = tmp_path / "tollway.toml"
    config.write_text(config_for(NOWHERE).replace(f'"{NOWHERE}"', f'"{NOWHERE}"\n{KEY_IN_FILE}'))

    done = run_tollway("check", "--config", str(config), through=without_override())

    why = "gpu.key cannot be read: Permission denied. Let the server's user read it.\n"
    assert_refused(done, why)


def test_check_refuses_a_model_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "tollway.toml").write_text('embedded.gguf = "model.gguf"')
    model = tmp_path / "model.gguf"
    arguments = ("check", "--config", str(tmp_path / "tollway.toml"), "--data-dir", str(tmp_path))
    model.write_bytes(b"PK\x03\x04 a zip")
    refused = run_tollway(*arguments)
    model.write_bytes(b"GGUF and more")
    taken = run_tollway(*arguments)

    assert_refused(refused, f"{model} is not a GGUF file.")
    assert taken.status == 0, taken.stderr


def test_the_help_names_every_command() -> None:
    done = run_tollway("--help")

    assert done.status == 0
    for command, _ in COMMANDS:
        assert f"\n  {command.split()[0]} " in done.stdout


@pytest.mark.parametrize(("command", "options"), COMMANDS)
def test_the_help_of_a_command_names_what_it_takes(command: str, options: list[str]) -> None:
    done = run_tollway(*command.split(), "--help")

    common = ["--config", "--data-dir", *(["--json"] if command != "serve" else [])]
    assert [option for option in (*options, *common) if option not in done.stdout] == []


def test_a_shell_completes_the_commands() -> None:
    env = {
        **os.environ,
        "_TOLLWAY_COMPLETE": "complete_bash",
        "COMP_WORDS": "tollway credit ",
        "COMP_CWORD": "2",
    }

    done = run_tollway(env=env)

    assert done.stdout.split() == ["top-up", "refund", "adjust"]


def test_the_version_is_printed() -> None:
    assert run_tollway("--version").stdout.startswith("tollway 0.")
