#!/bin/sh
# The first start: passwords of the databases and of Grafana, keys, a certificate, a first user. What is there stays as
# it is. The folder of secrets is mounted into servers of ours alone, that of the web into nginx alone.
#
#   setup.sh [SECRETS [WEB]]
set -eu
umask 022 # a program that has the volume may run as any user

secrets=${1:-/run/mlops} web=${2:-/etc/mlops/web}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
entry=$here/nginx
[ -d "$entry" ] || entry=$here/../nginx # in a checkout

for name in postgres-password dagster-password mlflow-password grafana-password s3-key; do
  [ -s "$secrets/$name" ] && continue
  openssl rand -hex 24 > "$secrets/$name.part"
  mv "$secrets/$name.part" "$secrets/$name"
done
# In the form that SeaweedFS reads.
printf '{"identities":[{"name":"mlflow","credentials":[{"accessKey":"mlflow","secretKey":"%s"}],"actions":["Admin"]}]}' \
  "$(cat "$secrets/s3-key")" > "$secrets/s3.json"

sh "$entry/setup.sh" "$web" "${MLOPS_HOSTNAME:-localhost}"
cp "$web/certificate.pem" "$secrets/certificate.pem" # for the doctor, who looks through nginx
