"""Puts one money bug after another into a copy of the source, and shows that the tests catch each.

    python -m tests.money_bugs             all of them; exit status 1 where one survives
    python -m tests.money_bugs NAME ...    these

A bug is a few characters that a tired person could get wrong. The tests that can catch it run in
the order of their cost, until one fails.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
AT_A_TIME = 2
SECONDS_MAX = 400

GATEWAY = ("-m", "pytest", "-q", "-x", "tests/unit/gateway", "tests/unit/test_pricing.py")
UPSTREAMS = ("-m", "pytest", "-q", "-x", "tests/unit/upstreams/test_openai.py")
WIRE = ("-m", "pytest", "-q", "-x", "tests/unit/wire", "tests/unit/api/admin")
LEDGER = ("-m", "pytest", "-q", "-x", "tests/unit/ledger", "tests/unit/database")
POSTGRES = (
    *("-m", "pytest", "-q", "-x", "tests/integration/test_postgres_ledger.py"),
    "tests/integration/test_postgres_faults.py",
    "tests/integration/test_postgres_down.py",
)
SIMULATOR = ("-m", "tests.simulator", "--schedules", "1500", "--stop-at", "1")


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    file: str
    right: str
    wrong: str

    @property
    def suites(self) -> tuple[tuple[str, ...], ...]:
        if "postgres" in self.file or self.file == "database/instance.py":
            return (POSTGRES,)
        if self.file.startswith("upstreams"):
            return UPSTREAMS, GATEWAY, SIMULATOR
        if self.file.startswith(("ledger", "database")):
            return LEDGER, GATEWAY, SIMULATOR
        return GATEWAY, WIRE, SIMULATOR


FUNCTIONS = "database/migrations/postgres/0002_ledger.sql"

BUGS = (
    # --- pricing
    Bug(
        "a charge is rounded down",
        "pricing.py",
        "return -(-exact // TOKENS_PER_PRICE_UNIT)",
        "return exact // TOKENS_PER_PRICE_UNIT",
    ),
    Bug(
        "a ceil that is off by one",
        "pricing.py",
        "return -(-exact // TOKENS_PER_PRICE_UNIT)",
        "return exact // TOKENS_PER_PRICE_UNIT + 1",
    ),
    Bug(
        "what is affordable is rounded up",
        "pricing.py",
        "return left // (price.output_credits_per_million * choices)",
        "return -(-left // (price.output_credits_per_million * choices))",
    ),
    Bug(
        "the bound forgets names and call ids",
        "gateway/prompt.py",
        "if message.name is not None:",
        "if message.name is not None and False:",
    ),
    Bug(
        "the bound of a short request forgets names",
        "wire/requests.py",
        "if type(message) is ToolMessage or message.name is not None:",
        "if type(message) is ToolMessage:",
    ),
    Bug(
        "the bound forgets how templates lay tools out",
        "gateway/prompt.py",
        "tokens += _template_tokens(found.layout_signs, found.escaped_signs)",
        "pass",
    ),
    Bug(
        "the bound forgets how templates lay calls out",
        "gateway/prompt.py",
        "tokens += _template_tokens(signs, escaped_signs(calls.written))",
        "pass",
    ),
    Bug(
        "the bound forgets that results are written as JSON",
        "gateway/prompt.py",
        "tokens += _tokens_as_json(sorted_.results, sorted_.result_texts)",
        "pass",
    ),
    Bug(
        "the bound forgets what a result is longer by as JSON",
        "gateway/prompt.py",
        "return longer + _template_tokens(0, escaped_signs(written.written))",
        "return _template_tokens(0, escaped_signs(written.written))",
    ),
    Bug(
        "the bound takes what stands beside results for theirs",
        "gateway/prompt.py",
        "signs -= escaped_signs(items.written)",
        "signs -= 2 * escaped_signs(items.written)",
    ),
    Bug(
        "the bound forgets tools that were read before",
        "wire/requests.py",
        "parsed.images, tools_size=known.size)",
        "parsed.images, tools_size=JsonSize(0, 0, 0))",
    ),
    Bug(
        "the bound forgets the name before each result",
        "gateway/prompt.py",
        "name_tokens += longest_name",
        "pass",
    ),
    Bug(
        "room for a template is charged where nobody counted",
        "gateway/cost.py",
        "_input_tokens_assumed(model, parsed, bound.text_bytes)",
        "_input_tokens_assumed(model, parsed, bound.tokens)",
    ),
    Bug(
        "the bound forgets what NFKC makes longer",
        "wire/text.py",
        "(_growth(text) if _may_grow(written, (text,)) else 0)",
        "0",
    ),
    Bug(
        "what a look at all texts finds to grow is not counted",
        "wire/text.py",
        'return _growing().find_one("".join(texts) if part is None else part) is not None',
        "return False",
    ),
    Bug(
        "of texts that are not ASCII, characters are counted and not bytes",
        "wire/text.py",
        "return len(written)\n    return sum(map(text_bytes, texts))",
        "return sum(map(len, texts))\n    return sum(map(text_bytes, texts))",
    ),
    # --- admit
    Bug(
        "truth for `is None`: X-Credits-Max: 0 allows everything",
        "gateway/cost.py",
        "if ceiling is not None and credits_max > ceiling:",
        "if ceiling and credits_max > ceiling:",
    ),
    Bug(
        "truth for `is None`: a spend cap of 0 is none",
        "ledger/sqlite.py",
        "if ask.token_spend_cap is not None:\n            amount",
        "if ask.token_spend_cap:\n            amount",
    ),
    Bug(
        "the hold forgets that there are several choices",
        "gateway/cost.py",
        "credits = charge(model.price_max, input_tokens, choices * output_tokens)",
        "credits = charge(model.price_max, input_tokens, output_tokens)",
    ),
    Bug(
        "a smaller hold does not lower the cap",
        "gateway/admit.py",
        "if hold.amount != cost.credits_max:",
        "if hold.amount > cost.credits_max:",
    ),
    Bug(
        "a refused request keeps its place",
        "gateway/admit.py",
        "            self._concurrency.leave(caller.account.id)\n            for key",
        "            for key",
    ),
    Bug(
        "who is frozen while the prompt is counted may pay",
        "gateway/admit.py",
        "                is_caller_current = False\n                counted = await counting\n",
        "                counted = await counting\n",
    ),
    Bug(
        "X-Credits-Max is not kept to",
        "gateway/cost.py",
        "        credits_max = ceiling\n",
        "        pass\n",
    ),
    Bug(
        "without usage, a byte of the input is charged as a token",
        "gateway/cost.py",
        "assumed = -(-parsed.text_bytes // BYTES_PER_TOKEN)",
        "assumed = parsed.text_bytes",
    ),
    # --- route and upstream
    Bug(
        "a request's cap is not sent to the upstream",
        "upstreams/openai.py",
        "tail %= (model, ask.output_tokens_max)",
        "tail %= (model, 9999)",
    ),
    Bug(
        "asked again although it had answered",
        "upstreams/connection.py",
        "elif self._used and not self._answered:",
        "elif self._used:",
    ),
    # --- relay
    Bug(
        "an upstream is cut one token too late",
        "gateway/relay.py",
        "if meter.output_pieces > self._output_tokens_max:",
        "if meter.output_pieces > self._output_tokens_max + 1:",
    ),
    Bug(
        "usage of what was cut off is charged",
        "gateway/relay.py",
        "if report is not None and not self.cut_off:",
        "if report is not None:",
    ),
    Bug(
        "each event counts, with output or not",
        "gateway/relay.py",
        "pieces += choice.delta.carries_output()",
        "pieces += 1",
    ),
    Bug(
        "what waits is counted before it is written",
        "gateway/relay.py",
        "        self._unsent_pieces = pieces\n",
        "        meter.output_pieces += pieces\n",
    ),
    Bug(
        "several events of one read count as one",
        "gateway/relay.py",
        "self._meter.output_pieces += self._unsent_pieces",
        "self._meter.output_pieces += 1",
    ),
    Bug(
        "what is passed on is not cut at its cap",
        "gateway/relay.py",
        "if not pieces or meter.output_pieces + pieces > self._output_tokens_max:",
        "if not pieces:",
    ),
    Bug(
        "the short way forgets to count",
        "gateway/relay.py",
        "            self._count_pieces(1)\n",
        "",
    ),
    Bug(
        "what comes after the client has left is counted",
        "api/exchange.py",
        "self.press(True)  # nothing more",
        "pass  # nothing more",
    ),
    # --- settle
    Bug(
        "a report from before the last output is believed",
        "gateway/settle.py",
        "        and (completed or meter.reported_pieces == meter.output_pieces)\n",
        "",
    ),
    Bug(
        "a usage of zero is believed",
        "gateway/settle.py",
        "        and report.input_tokens\n        and (report.output_tokens or not received)\n",
        "",
    ),
    Bug(
        "a whole reply that broke is charged",
        "gateway/settle.py",
        "if not completed and not admission.parsed.wants_stream:",
        'if meter.status == "interrupted" and not admission.parsed.wants_stream:',
    ),
    Bug(
        "a blank reply is charged",
        "gateway/settle.py",
        "if not received and not (completed and meter.finished):",
        "if not received and not completed:",
    ),
    Bug(
        "a checkpoint is ahead of what was delivered",
        "gateway/settle.py",
        "                usage.output_tokens,\n                admission.call",
        "                usage.output_tokens + 1,\n                admission.call",
    ),
    Bug(
        "negative usage is believed",
        "wire/usage.py",
        "type(value) is int and 0 <= value <= TOKENS_BELIEVED_MAX",
        "type(value) is int and value <= TOKENS_BELIEVED_MAX",
    ),
    # --- pipeline
    Bug(
        "a place in flight is not given back",
        "gateway/pipeline.py",
        "            self._gate.leave(admission)\n",
        "            pass\n",
    ),
    # --- ledger
    Bug(
        "a charge is not held to its hold",
        "ledger/sqlite.py",
        "charged = outcome.cost if outcome.cost < hold.amount else hold.amount",
        "charged = outcome.cost",
    ),
    Bug(
        "what others hold may be held again",
        "ledger/sqlite.py",
        "available = purse.balance - purse.held\n        if available < ask.amount_min:",
        "available = purse.balance\n        if available < ask.amount_min:",
    ),
    Bug(
        "only what was charged is released",
        "ledger/sqlite.py",
        "        purse.held -= hold.amount\n        purse.take(charged)",
        "        purse.held -= charged\n        purse.take(charged)",
    ),
    Bug(
        "a dropped WHERE",
        "ledger/charges.py",
        '"UPDATE tokens SET spent = spent + ? WHERE id = ? AND spend_cap IS NOT NULL"',
        '"UPDATE tokens SET spent = spent + ? WHERE ? IS NOT NULL AND spend_cap IS NOT NULL"',
    ),
    Bug(
        "the client is told before the charge is on disk",
        "ledger/sqlite.py",
        "        self._database.submit(_Settle(self._unfiled, self._chains, future, charge))\n",
        "        self._database.submit(_Settle(self._unfiled, self._chains, future, charge))\n"
        "        future.set_result(settlement)\n",
    ),
    Bug(
        "charges are filed twice after a COMMIT in doubt",
        "ledger/charges.py",
        "rows = not_written(connection, read_unfiled(connection))",
        "rows = self._rows + read_unfiled(connection)",
    ),
    Bug(
        "charges that were not filed are forgotten by a rollback",
        "ledger/charges.py",
        "        self._is_sure = self._may_add = False\n        self.waits = True\n",
        "        self._may_add = False\n",
    ),
    Bug(
        "what waited is not filed at the start",
        "ledger/charges.py",
        "write_rows(connection, chains, not_written(connection, read_unfiled(connection)))",
        "pass",
    ),
    Bug(
        "the journal is applied twice",
        "ledger/sqlite.py",
        "missing = not_written(connection, [rows_of(work.charge) for work in batch])",
        "missing = [rows_of(work.charge) for work in batch]",
    ),
    Bug(
        "recovery charges more than the hold",
        "ledger/charges.py",
        "charged = min(cost, amount, balance)",
        "charged = cost",
    ),
    Bug(
        "what is taken back may be what is held",
        "ledger/sqlite.py",
        "if purse.balance - purse.held + amount < 0:",
        "if purse.balance + amount < 0:",
    ),
    Bug(
        "the same top-up counts twice",
        "ledger/sqlite.py",
        "written = error is None and done.result()[1]",
        "written = error is None",
    ),
    Bug(
        "a commit does not wait for the disk",
        "database/sqlite.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = OFF",
    ),
    # --- operations
    Bug(
        "a refund is bounded by the hold, not the charge",
        "api/admin/operations.py",
        "if refunded > receipt.charged:",
        "if refunded > receipt.reserved:",
    ),
    # --- many replicas
    Bug(
        "a hold is tested against the balance alone",
        FUNCTIONS,
        "    available := a_balance - a_held;\n",
        "    available := a_balance;\n",
    ),
    Bug(
        "a late charge takes what others hold",
        FUNCTIONS,
        "- COALESCE(hold.charged, 0), available,",
        "- COALESCE(hold.charged, 0), a_balance,",
    ),
    Bug(
        "a late charge forgets what the checkpoint took",
        FUNCTIONS,
        "LEAST(LEAST(op.cost, granted) - COALESCE(hold.charged, 0), available,",
        "LEAST(LEAST(op.cost, granted), available,",
    ),
    Bug(
        "a lease takes more than its share",
        FUNCTIONS,
        "granted := LEAST(op.target - COALESCE(l_amount, 0), available / op.share);",
        "granted := op.target - COALESCE(l_amount, 0);",
    ),
    Bug(
        "a charge is not taken from the lease that paid it",
        FUNCTIONS,
        "l_amount := l_amount - now_paid; l_changed := true;",
        "l_changed := true;",
    ),
    Bug(
        "a replica that died keeps its leases",
        FUNCTIONS,
        "      a_held := a_held - l_amount;\n      DELETE",
        "      DELETE",
    ),
    Bug(
        "a spend cap forgets what is held under it",
        FUNCTIONS,
        "granted := LEAST(granted, token.spend_cap - token.spent - token.held);",
        "granted := LEAST(granted, token.spend_cap - token.spent);",
    ),
    Bug(
        "a hold that was voided stays held",
        FUNCTIONS,
        "        a_held := a_held - hold.amount; a_changed := true;\n        UPDATE tokens",
        "        UPDATE tokens",
    ),
    Bug(
        "leased credit is held twice",
        "ledger/postgres/ledger.py",
        "            purse.in_use += ask.amount_max\n",
        "",
    ),
    Bug(
        "a replica that lost its lease goes on holding from it",
        "ledger/postgres/ledger.py",
        "            and self._instance.is_live\n",
        "",
    ),
    Bug(
        "what was held is given back and what was charged is not",
        "ledger/postgres/ledger.py",
        "            purse.leased -= charged\n",
        "",
    ),
    Bug(
        "what two questions about a lease bring is counted twice",
        "ledger/postgres/purses.py",
        "        if purse.is_asking:\n            purse.gives_back = True\n        else:\n    ",
        "",
    ),
    Bug(
        "holds end by a database clock that was set ahead",
        "database/instance.py",
        "        if asked_at >= self._expires_from:\n    ",
        "",
    ),
    Bug(
        "a charge that was queued again comes after what reckons with it",
        "ledger/postgres/lanes.py",
        "        self._queue.appendleft(piece)\n",
        "        self._queue.append(piece)\n",
    ),
    Bug(
        "a lease whose answer was lost is forgotten",
        "ledger/postgres/purses.py",
        "            purse.is_unsure = True\n            return",
        "            return",
    ),
)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.money_bugs", description=__doc__)
    options.add_argument("names", nargs="*", help="those whose name has one of these in it")
    names: list[str] = options.parse_args().names
    bugs = [bug for bug in BUGS if not names or any(name in bug.name for name in names)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        if not all(pool.map(_passes_here, (GATEWAY, WIRE, LEDGER, POSTGRES, SIMULATOR))):
            _say("The tests fail without a bug: nothing is shown by their failing with one.")
            return 2
        killed = list(pool.map(_is_killed, bugs))
    _say(f"{sum(killed)} of {len(bugs)} killed")
    return not all(killed)


def _is_killed(bug: Bug) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        _copy_tree(copy)
        _apply(bug, copy)
        killer = next((suite for suite in bug.suites if not _passes(copy, suite)), None)
    seconds = time.monotonic() - began
    by = "" if killer is None else f", by {' '.join(word for word in killer if 'tests' in word)}"
    _say(f"{'SURVIVED' if killer is None else 'killed':9} {bug.name} ({seconds:.0f} s{by})")
    return killer is not None


def _passes_here(suite: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as name:
        _copy_tree(Path(name))
        failure = _failure(Path(name), suite)
    if failure is not None:
        _say(failure)
    return failure is None


def _copy_tree(copy: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__", "node_modules")
    for directory in ("src", "tests"):
        shutil.copytree(ROOT / directory, copy / directory, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", copy)


def _apply(bug: Bug, copy: Path) -> None:
    path = copy / "src" / "tollway" / bug.file
    source = path.read_text()
    count = source.count(bug.right)
    assert count == 1, f"{bug.name}: its text is {count} times in {bug.file}; put it up to date"
    path.write_text(source.replace(bug.right, bug.wrong))


def _passes(copy: Path, suite: Sequence[str]) -> bool:
    return _failure(copy, suite) is None


def _failure(copy: Path, suite: Sequence[str]) -> str | None:
    """The end of what was printed, where the suite failed or did not come to its end."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    with subprocess.Popen(
        [sys.executable, *suite],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            printed, _ = running.communicate(timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # with the processes that it began
            return f"{' '.join(suite)} did not end within {SECONDS_MAX} s."
    return None if running.returncode == 0 else printed[-2000:]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
