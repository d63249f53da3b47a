-- Times are milliseconds since the Unix epoch, UTC. Credits are whole numbers. Holds in flight live in the server's
-- memory (one process owns this file): a row in `holds` is already closed, and `accounts.held` stays 0.
--
-- The ledger's CHECK of five kinds is written out: for an `IN` of three and more SQLite fills a temporary index, at each
-- row.

CREATE TABLE accounts (
  id                  TEXT   NOT NULL PRIMARY KEY,
  name                TEXT   NOT NULL UNIQUE,
  status              TEXT   NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'frozen')),
  balance             BIGINT NOT NULL DEFAULT 0,
  held                BIGINT NOT NULL DEFAULT 0 CHECK (held >= 0),
  seq                 BIGINT NOT NULL DEFAULT 0,
  chain_head          BLOB   NOT NULL,
  requests_per_minute BIGINT,
  concurrent_requests BIGINT,
  created_at          BIGINT NOT NULL,
  CHECK (balance >= held)
);

CREATE TABLE tokens (
  id                  TEXT   NOT NULL PRIMARY KEY,
  account_id          TEXT   NOT NULL REFERENCES accounts (id),
  name                TEXT   NOT NULL,
  digest              BLOB   NOT NULL UNIQUE,
  scopes              TEXT   NOT NULL,
  models              TEXT,
  requests_per_minute BIGINT,
  spend_cap           BIGINT,
  spent               BIGINT NOT NULL DEFAULT 0,
  strict              BIGINT NOT NULL DEFAULT 0,
  created_at          BIGINT NOT NULL,
  expires_at          BIGINT,
  revoked_at          BIGINT
);

CREATE INDEX tokens_by_account ON tokens (account_id, id);

CREATE TABLE prices (
  id              TEXT   NOT NULL PRIMARY KEY,
  model           TEXT   NOT NULL,
  prompt_rate     BIGINT NOT NULL CHECK (prompt_rate >= 0),
  completion_rate BIGINT NOT NULL CHECK (completion_rate >= 0),
  created_at      BIGINT NOT NULL
);

CREATE TABLE holds (
  id         TEXT   NOT NULL PRIMARY KEY,
  account_id TEXT   NOT NULL,
  token_id   TEXT   NOT NULL,
  price_id   TEXT   NOT NULL,
  amount     BIGINT NOT NULL CHECK (amount >= 0),
  charged    BIGINT NOT NULL CHECK (charged >= 0),
  late       BIGINT NOT NULL DEFAULT 0 CHECK (late >= 0),
  shortfall  BIGINT NOT NULL DEFAULT 0 CHECK (shortfall >= 0),
  state      TEXT   NOT NULL CHECK (state IN ('settled', 'released', 'expired')),
  created_at BIGINT NOT NULL,
  closed_at  BIGINT NOT NULL,
  CHECK (charged + late <= amount)
) WITHOUT ROWID;

CREATE TABLE ledger (
  account_id    TEXT   NOT NULL,
  seq           BIGINT NOT NULL,
  kind          TEXT   NOT NULL CHECK (kind = 'charge' OR kind = 'grant' OR kind = 'top_up' OR kind = 'refund' OR kind = 'adjustment'),
  amount        BIGINT NOT NULL,
  balance_after BIGINT NOT NULL CHECK (balance_after >= 0),
  ref           TEXT   NOT NULL,
  description   TEXT   NOT NULL,
  created_at    BIGINT NOT NULL,
  hash          BLOB   NOT NULL,
  PRIMARY KEY (account_id, seq),
  UNIQUE (ref, kind)
) WITHOUT ROWID;

CREATE TABLE usage (
  request_id        TEXT   NOT NULL PRIMARY KEY,
  account_id        TEXT   NOT NULL,
  token_id          TEXT   NOT NULL,
  model             TEXT   NOT NULL,
  status            TEXT   NOT NULL CHECK (status IN ('completed', 'interrupted', 'failed')),
  source            TEXT   NOT NULL CHECK (source IN ('upstream', 'counted', 'checkpoint')),
  prompt_tokens     BIGINT NOT NULL CHECK (prompt_tokens >= 0),
  completion_tokens BIGINT NOT NULL CHECK (completion_tokens >= 0),
  remaining         BIGINT NOT NULL,
  upstream          TEXT,
  upstream_id       TEXT,
  attempts          TEXT   NOT NULL,
  client_request_id TEXT,
  created_at        BIGINT NOT NULL,
  first_token_ms    BIGINT,
  total_ms          BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TABLE checkpoints (
  hold_id           TEXT   NOT NULL PRIMARY KEY,
  account_id        TEXT   NOT NULL,
  token_id          TEXT   NOT NULL,
  price_id          TEXT   NOT NULL,
  amount            BIGINT NOT NULL,
  model             TEXT   NOT NULL,
  upstream          TEXT,
  prompt_tokens     BIGINT NOT NULL,
  completion_tokens BIGINT NOT NULL,
  client_request_id TEXT,
  created_at        BIGINT NOT NULL,
  updated_at        BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TABLE idempotency (
  account_id  TEXT   NOT NULL,
  key         TEXT   NOT NULL,
  body_digest BLOB   NOT NULL,
  request_id  TEXT   NOT NULL,
  completed   BIGINT NOT NULL DEFAULT 0,
  reply       BLOB,
  created_at  BIGINT NOT NULL,
  PRIMARY KEY (account_id, key)
) WITHOUT ROWID;

CREATE INDEX idempotency_running ON idempotency (request_id) WHERE completed = 0;
CREATE INDEX idempotency_by_age ON idempotency (created_at);

CREATE TABLE audit (
  id         TEXT   NOT NULL PRIMARY KEY,
  actor      TEXT   NOT NULL,
  action     TEXT   NOT NULL,
  subject    TEXT   NOT NULL,
  reason     TEXT   NOT NULL,
  details    TEXT   NOT NULL,
  created_at BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER ledger_refuses_update BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger only grows: add an entry'); END;
CREATE TRIGGER ledger_refuses_delete BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger only grows: add an entry'); END;
CREATE TRIGGER audit_refuses_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END;
CREATE TRIGGER audit_refuses_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END;
CREATE TRIGGER prices_refuse_update BEFORE UPDATE ON prices
BEGIN SELECT RAISE(ABORT, 'a price is never changed: add one'); END;
CREATE TRIGGER prices_refuse_delete BEFORE DELETE ON prices
BEGIN SELECT RAISE(ABORT, 'a price is never changed: add one'); END;
