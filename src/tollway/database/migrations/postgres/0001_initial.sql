-- Times are milliseconds since the Unix epoch, UTC. Credits are whole numbers. The tables are those of
-- migrations/sqlite/0001_initial.sql, with what many replicas need beside them: holds are rows from the start, with an
-- owner (`instance`) and an expiry; `accounts.held` is what open holds and credit leases set aside.
--
-- Ids are compared by their bytes (COLLATE "C"), as SQLite and Python compare them.

CREATE TABLE accounts (
  id                  TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  name                TEXT   NOT NULL UNIQUE,
  status              TEXT   NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'frozen')),
  balance             BIGINT NOT NULL DEFAULT 0,
  held                BIGINT NOT NULL DEFAULT 0 CHECK (held >= 0),
  seq                 BIGINT NOT NULL DEFAULT 0,
  chain_head          BYTEA  NOT NULL,
  requests_per_minute BIGINT,
  concurrent_requests BIGINT,
  created_at          BIGINT NOT NULL,
  CHECK (balance >= held)
) WITH (fillfactor = 60);

CREATE TABLE tokens (
  id                  TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  account_id          TEXT   COLLATE "C" NOT NULL REFERENCES accounts (id),
  name                TEXT   NOT NULL,
  digest              BYTEA  NOT NULL UNIQUE,
  scopes              TEXT   NOT NULL,
  models              TEXT,
  requests_per_minute BIGINT,
  spend_cap           BIGINT,
  spent               BIGINT NOT NULL DEFAULT 0,
  strict              BIGINT NOT NULL DEFAULT 0,
  created_at          BIGINT NOT NULL,
  expires_at          BIGINT,
  revoked_at          BIGINT,
  held                BIGINT NOT NULL DEFAULT 0 CHECK (held >= 0)
) WITH (fillfactor = 80);

CREATE INDEX tokens_by_account ON tokens (account_id, id);

CREATE TABLE prices (
  id                 TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  model              TEXT   NOT NULL,
  prompt_rate        BIGINT NOT NULL CHECK (prompt_rate >= 0),
  completion_rate    BIGINT NOT NULL CHECK (completion_rate >= 0),
  created_at         BIGINT NOT NULL,
  cached_prompt_rate BIGINT,
  reasoning_rate     BIGINT
);

-- A replica, for as long as it renews. Whoever sees that it does not reaps it: its holds end at their checkpoints, its
-- leases go back. `seen` is the last change that it has heard of.
CREATE TABLE instances (
  id         TEXT    COLLATE "C" NOT NULL PRIMARY KEY,
  name       TEXT    NOT NULL,
  started_at BIGINT  NOT NULL,
  expires_at BIGINT  NOT NULL,
  renewals   BIGINT  NOT NULL DEFAULT 0,
  seen       BIGINT  NOT NULL DEFAULT 0,
  reaped     BOOLEAN NOT NULL DEFAULT false
) WITH (fillfactor = 60);

CREATE TABLE holds (
  id         TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  account_id TEXT   COLLATE "C" NOT NULL,
  token_id   TEXT   COLLATE "C" NOT NULL,
  price_id   TEXT   COLLATE "C" NOT NULL,
  amount     BIGINT NOT NULL CHECK (amount >= 0),
  charged    BIGINT NOT NULL DEFAULT 0 CHECK (charged >= 0),
  late       BIGINT NOT NULL DEFAULT 0 CHECK (late >= 0),
  shortfall  BIGINT NOT NULL DEFAULT 0 CHECK (shortfall >= 0),
  state      TEXT   NOT NULL CHECK (state IN ('open', 'settled', 'released', 'expired')),
  created_at BIGINT NOT NULL,
  closed_at  BIGINT,
  instance   TEXT   COLLATE "C",
  expires_at BIGINT,
  CHECK (charged + late <= amount),
  CHECK ((state = 'open') = (closed_at IS NULL))
);

CREATE INDEX holds_open ON holds (instance, account_id) WHERE state = 'open';

-- Credit of an account that a replica may hold from without asking. It is part of `accounts.held`.
CREATE TABLE credit_leases (
  instance   TEXT    COLLATE "C" NOT NULL,
  account_id TEXT    COLLATE "C" NOT NULL,
  amount     BIGINT  NOT NULL CHECK (amount >= 0),
  recalled   BOOLEAN NOT NULL DEFAULT false,
  PRIMARY KEY (account_id, instance)
) WITH (fillfactor = 60);

CREATE INDEX credit_leases_by_instance ON credit_leases (instance);

CREATE TABLE ledger (
  account_id    TEXT   COLLATE "C" NOT NULL,
  seq           BIGINT NOT NULL,
  kind          TEXT   NOT NULL
                CHECK (kind IN ('grant', 'top_up', 'charge', 'late_charge', 'refund', 'adjustment')),
  amount        BIGINT NOT NULL,
  balance_after BIGINT NOT NULL CHECK (balance_after >= 0),
  ref           TEXT   COLLATE "C" NOT NULL,
  description   TEXT   NOT NULL,
  created_at    BIGINT NOT NULL,
  hash          BYTEA  NOT NULL,
  PRIMARY KEY (account_id, seq),
  UNIQUE (ref, kind)
);

CREATE TABLE usage (
  request_id        TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  account_id        TEXT   COLLATE "C" NOT NULL,
  token_id          TEXT   COLLATE "C" NOT NULL,
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
  total_ms          BIGINT NOT NULL,
  cached_tokens     BIGINT NOT NULL DEFAULT 0,
  reasoning_tokens  BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE checkpoints (
  hold_id           TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  account_id        TEXT   COLLATE "C" NOT NULL,
  token_id          TEXT   COLLATE "C" NOT NULL,
  price_id          TEXT   COLLATE "C" NOT NULL,
  amount            BIGINT NOT NULL,
  model             TEXT   NOT NULL,
  upstream          TEXT,
  prompt_tokens     BIGINT NOT NULL,
  completion_tokens BIGINT NOT NULL,
  client_request_id TEXT,
  created_at        BIGINT NOT NULL,
  updated_at        BIGINT NOT NULL,
  instance          TEXT   COLLATE "C" NOT NULL
) WITH (fillfactor = 60);

CREATE INDEX checkpoints_by_instance ON checkpoints (instance, account_id);

CREATE TABLE idempotency (
  account_id  TEXT   COLLATE "C" NOT NULL,
  key         TEXT   COLLATE "C" NOT NULL,
  body_digest BYTEA  NOT NULL,
  request_id  TEXT   COLLATE "C" NOT NULL,
  completed   BIGINT NOT NULL DEFAULT 0,
  reply       BYTEA,
  created_at  BIGINT NOT NULL,
  instance    TEXT   COLLATE "C",
  PRIMARY KEY (account_id, key)
);

CREATE INDEX idempotency_running ON idempotency (instance) WHERE completed = 0;
CREATE INDEX idempotency_by_age ON idempotency (created_at);

CREATE TABLE audit (
  id         TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  actor      TEXT   NOT NULL,
  action     TEXT   NOT NULL,
  subject    TEXT   NOT NULL,
  reason     TEXT   NOT NULL,
  details    TEXT   NOT NULL,
  created_at BIGINT NOT NULL
);

-- What replicas keep in memory and has changed, so that each reads it again. `refuses`: something is refused from now
-- on, and whoever changed it waits until every replica has heard of it.
CREATE TABLE changes (
  id         BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind       TEXT    NOT NULL CHECK (kind IN ('account', 'token', 'price')),
  subject    TEXT    NOT NULL,
  refuses    BOOLEAN NOT NULL DEFAULT false,
  txid       BIGINT  NOT NULL DEFAULT txid_current(),
  created_at BIGINT  NOT NULL
);

CREATE INDEX changes_by_age ON changes (created_at);
CREATE INDEX changes_by_transaction ON changes (txid);

-- The key that signs receipts, the same for every replica.
CREATE TABLE signing_keys (
  id         TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
  pem        TEXT   NOT NULL,
  created_at BIGINT NOT NULL
);

-- --- what only grows -------------------------------------------------------------------------------------------------

CREATE FUNCTION refuse_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% only grows: add a row', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER ledger_refuses_change BEFORE UPDATE OR DELETE ON ledger
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_refuses_change BEFORE UPDATE OR DELETE ON audit
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_refuse_change BEFORE UPDATE OR DELETE ON prices
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_refuses_truncate BEFORE TRUNCATE ON ledger
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_refuses_truncate BEFORE TRUNCATE ON audit
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_refuse_truncate BEFORE TRUNCATE ON prices
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- --- what replicas must hear of --------------------------------------------------------------------------------------

CREATE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE AS $$
  SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;

CREATE FUNCTION tell_replicas() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
  refuses BOOLEAN := false;
BEGIN
  IF TG_TABLE_NAME = 'accounts' THEN
    refuses := NEW.status <> 'active';
  ELSIF TG_TABLE_NAME = 'tokens' THEN
    refuses := NEW.revoked_at IS NOT NULL;
  END IF;
  INSERT INTO changes (kind, subject, refuses, created_at) VALUES (TG_ARGV[0], NEW.id, refuses, now_ms());
  PERFORM pg_notify('tollway', 'change');
  RETURN NULL;
END $$;

-- Not for a balance: those change with every request, and each replica is told its own.
CREATE TRIGGER accounts_tell AFTER INSERT OR UPDATE OF name, status, requests_per_minute, concurrent_requests ON accounts
  FOR EACH ROW EXECUTE FUNCTION tell_replicas('account');
CREATE TRIGGER tokens_tell
  AFTER INSERT OR UPDATE OF name, scopes, models, requests_per_minute, spend_cap, strict, expires_at, revoked_at ON tokens
  FOR EACH ROW EXECUTE FUNCTION tell_replicas('token');
CREATE TRIGGER prices_tell AFTER INSERT ON prices
  FOR EACH ROW EXECUTE FUNCTION tell_replicas('price');
