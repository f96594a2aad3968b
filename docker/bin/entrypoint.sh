#!/bin/sh
# Turn the secret files of the `setup` service into what the programs read, then become the program. Under the name of a
# command (a link) it becomes that: `docker compose exec` and health checks come past the image's entry point.
set -eu

secrets=${MLOPS_SECRETS:-/run/mlops}
postgres=${MLOPS_POSTGRES:-postgres:5432}
password() { cat "$secrets/$1"; }

if [ -r "$secrets/dagster/password" ] && [ -z "${MLOPS_DAGSTER_DATABASE:-}" ]; then
  MLOPS_DAGSTER_DATABASE="postgresql+psycopg2://dagster:$(password dagster/password)@$postgres/dagster"
  export MLOPS_DAGSTER_DATABASE
fi
if [ -r "$secrets/mlflow/password" ] && [ -z "${MLOPS_MLFLOW_DATABASE:-}" ]; then
  MLOPS_MLFLOW_DATABASE="postgresql+psycopg2://mlflow:$(password mlflow/password)@$postgres/mlflow"
  MLFLOW_BACKEND_STORE_URI=$MLOPS_MLFLOW_DATABASE # read by `mlflow server` alone
  export MLOPS_MLFLOW_DATABASE MLFLOW_BACKEND_STORE_URI
fi
if [ -r "$secrets/mlflow/s3-key" ] && [ -n "${MLFLOW_S3_ENDPOINT_URL:-}" ] && [ -z "${AWS_ACCESS_KEY_ID:-}" ]; then
  AWS_ACCESS_KEY_ID=mlflow
  AWS_SECRET_ACCESS_KEY=$(password mlflow/s3-key)
  export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
fi
authorities=/tmp/authorities.pem
if [ -r "$secrets/trust/certificate.pem" ] && [ "${SSL_CERT_FILE:-}" != $authorities ]; then # the doctor asks through nginx
  cat "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$secrets/trust/certificate.pem" > $authorities.$$
  mv $authorities.$$ $authorities
  export SSL_CERT_FILE=$authorities
fi

name=$(basename "$0")
case $name in
  entrypoint.sh) exec "$@" ;;
  *) exec "/opt/venv/bin/$name" "$@" ;;
esac
