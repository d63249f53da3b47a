-- Rates and tokens of two parts of a request: of its prompt what the upstream had cached, of its output what was
-- reasoning. A rate that is null is the rate of the whole. There is no CHECK: for one that is added, SQLite reads the
-- whole table, and `tollway ledger verify` looks at these.

ALTER TABLE prices ADD COLUMN cached_prompt_rate BIGINT;
ALTER TABLE prices ADD COLUMN reasoning_rate BIGINT;

ALTER TABLE usage ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN reasoning_tokens BIGINT NOT NULL DEFAULT 0;

ALTER TABLE checkpoints ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN reasoning_tokens BIGINT NOT NULL DEFAULT 0;
