#!/bin/sh
# The role that serves: it may sign in, and gets its rights from `tollway migrate`. Postgres runs this once, on its first
# start; the owner of the tables is POSTGRES_USER.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set password="$(cat /run/secrets/serving_password)" <<'SQL'
CREATE ROLE tollway_server LOGIN PASSWORD :'password';
SQL
