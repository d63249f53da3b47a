-- Here a hold is written down when it has ended, and so has its usage: one row, not two with four columns in common. That
-- is a third of the rows of a charge. `holds` stays to be read, as Postgres has it; `late` is for a hold that ended with
-- its replica, and there is one process here.
--
-- Two values in an IN are compared; of three and more SQLite makes a temporary index, at each row.
--
-- What is one row had to be two: where one of them is not there, nothing is changed, and the version before can look.

CREATE TEMP TABLE alone (
  rows BIGINT CONSTRAINT "a hold has no usage, or a usage no hold: see tollway ledger verify of the version before" CHECK (rows = 0)
);
INSERT INTO alone SELECT COUNT(*) FROM holds WHERE NOT EXISTS (SELECT 1 FROM usage WHERE request_id = holds.id);
INSERT INTO alone SELECT COUNT(*) FROM usage WHERE NOT EXISTS (SELECT 1 FROM holds WHERE holds.id = usage.request_id);
DROP TABLE alone;

ALTER TABLE usage RENAME TO usage_before;
ALTER TABLE holds RENAME TO holds_before;

CREATE TABLE usage (
  request_id        TEXT   NOT NULL PRIMARY KEY,
  account_id        TEXT   NOT NULL,
  token_id          TEXT   NOT NULL,
  price_id          TEXT   NOT NULL,
  model             TEXT   NOT NULL,
  status            TEXT   NOT NULL CHECK (status IN ('completed', 'interrupted') OR status = 'failed'),
  source            TEXT   NOT NULL CHECK (source IN ('upstream', 'counted') OR source = 'checkpoint'),
  state             TEXT   NOT NULL CHECK (state IN ('settled', 'released') OR state = 'expired'),
  amount            BIGINT NOT NULL,
  charged           BIGINT NOT NULL CHECK (charged BETWEEN 0 AND amount),
  shortfall         BIGINT NOT NULL CHECK (shortfall >= 0),
  remaining         BIGINT NOT NULL,
  prompt_tokens     BIGINT NOT NULL CHECK (prompt_tokens >= 0),
  completion_tokens BIGINT NOT NULL CHECK (completion_tokens >= 0),
  cached_tokens     BIGINT NOT NULL,
  reasoning_tokens  BIGINT NOT NULL,
  upstream          TEXT,
  upstream_id       TEXT,
  attempts          TEXT   NOT NULL,
  client_request_id TEXT,
  created_at        BIGINT NOT NULL,
  closed_at         BIGINT NOT NULL,
  first_token_ms    BIGINT,
  total_ms          BIGINT NOT NULL
) WITHOUT ROWID;

INSERT INTO usage
SELECT u.request_id, u.account_id, u.token_id, h.price_id, u.model, u.status, u.source, h.state, h.amount,
       h.charged + h.late, h.shortfall, u.remaining, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
       u.reasoning_tokens, u.upstream, u.upstream_id, u.attempts, u.client_request_id, u.created_at, h.closed_at,
       u.first_token_ms, u.total_ms
  FROM usage_before u JOIN holds_before h ON h.id = u.request_id ORDER BY u.request_id;

DROP TABLE usage_before;
DROP TABLE holds_before;

CREATE VIEW holds AS
SELECT request_id AS id, account_id, token_id, price_id, amount, charged, 0 AS late, shortfall, state, created_at,
       closed_at
  FROM usage;
