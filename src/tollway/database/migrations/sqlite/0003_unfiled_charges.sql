-- Charges that are on disk and not in their tables yet: a row is a batch of them, as JSON. They are filed by the hundred,
-- in the order of `id`.

CREATE TABLE unfiled (
  id      INTEGER NOT NULL PRIMARY KEY,
  charges BLOB    NOT NULL
);
