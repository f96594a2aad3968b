#!/bin/bash
# Run once, by the first start of PostgreSQL: Dagster and MLflow each get a user, and a database that is theirs alone.
set -euo pipefail
psql --username "$POSTGRES_USER" --dbname postgres --set ON_ERROR_STOP=1 --quiet <<'SQL'
\set dagster `cat /run/mlops/postgres/dagster`
\set mlflow `cat /run/mlops/postgres/mlflow`
CREATE ROLE dagster LOGIN PASSWORD :'dagster';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE dagster, mlflow FROM PUBLIC;
SQL
