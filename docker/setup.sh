#!/bin/sh
# The first start: passwords, keys, a certificate, a first user. What is there stays as it is. Below SECRETS each program
# has a folder of its own, which is mounted into its container and into no other that does not need it.
#
#   setup.sh [SECRETS [WEB]]
set -eu
umask 022 # a folder is readable by whatever user its program runs as

secrets=${1:-/run/mlops} web=${2:-/etc/mlops/web}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
entry=$here/nginx
[ -d "$entry" ] || entry=$here/../nginx # in a checkout

for name in postgres/password dagster/password mlflow/password mlflow/s3-key grafana/password; do
  [ -s "$secrets/$name" ] && continue
  openssl rand -hex 24 > "$secrets/$name.part"
  mv "$secrets/$name.part" "$secrets/$name"
done
cp "$secrets/dagster/password" "$secrets/postgres/dagster"
cp "$secrets/mlflow/password" "$secrets/postgres/mlflow"
# In the form that SeaweedFS reads.
printf '{"identities":[{"name":"mlflow","credentials":[{"accessKey":"mlflow","secretKey":"%s"}],"actions":["Admin"]}]}' \
  "$(cat "$secrets/mlflow/s3-key")" > "$secrets/s3/config.json"

sh "$entry/setup.sh" "$web" "${MLOPS_HOSTNAME:-localhost}"
cp "$web/certificate.pem" "$secrets/trust/certificate.pem" # for the doctor, who looks through nginx
