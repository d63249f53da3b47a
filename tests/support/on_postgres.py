"""A plugin of pytest that runs the acceptance tests on Postgres: each server that is configured at
all gets a database of its own.

    scripts/test -p tests.support.on_postgres tests/acceptance/test_prepaid_credit.py
"""

import atexit
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.support.postgres import PostgresServer
from tests.support.server import TollwayServer

_VARIABLE = "TOLLWAY_TEST_DATABASE"
_plain_init = TollwayServer.__init__


@cache
def _postgres() -> PostgresServer:
    postgres = PostgresServer().__enter__()
    atexit.register(postgres.__exit__)
    return postgres


def _init(
    self: TollwayServer,
    data_dir: Path,
    config: str | None = None,
    *,
    env: dict[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> None:
    if config is not None and "[[models]]" in config:
        postgres = _postgres()
        key = f'[server]\ndatabase = "env:{_VARIABLE}"\n'
        before, table, after = config.partition("[server]\n")
        config = before + key + after if table else key + config
        env = {**(env or {}), _VARIABLE: postgres.url(postgres.new_database())}
    _plain_init(self, data_dir, config, env=env, arguments=arguments)


TollwayServer.__init__ = _init
