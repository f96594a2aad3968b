#!/bin/sh
# Write nginx's configuration from the environment, check it, and become nginx.
set -eu
sh /opt/mlops/nginx/render.sh /run/nginx-mlops
nginx -t -q -p /run/nginx-mlops -c /run/nginx-mlops/nginx.conf
exec nginx -p /run/nginx-mlops -c /run/nginx-mlops/nginx.conf -g 'daemon off;'
