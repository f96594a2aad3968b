#!/bin/sh
# Make the home, with the dagster.yaml that webserver and daemon read too, and become Dagster's code server.
set -eu
mlops env > /dev/null
exec dagster api grpc --module-name mlops_assets.definitions --host 0.0.0.0 --port 4000 --lazy-load-user-code \
  --location-name "${MLOPS_LOCATION:-mlops_assets}" --log-level warning
