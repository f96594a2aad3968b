#!/bin/sh
# Write nginx's configuration from the environment, check it, and become nginx.
set -eu
folder=/run/nginx-mlops
user=$(stat -c %G /etc/mlops/web) # whom the first start let read the users: `nginx`, and `www-data` in Debian's nginx
sh /opt/mlops/nginx/render.sh $folder
nginx -t -q -p $folder -c $folder/nginx.conf -g "user $user;"
# The first process goes on under this number as nginx; who else trusts the certificate gets a copy.
sh /opt/mlops/nginx/keep.sh /etc/mlops/web "${MLOPS_HOSTNAME:-localhost}" 86400 \
  sh -c 'cp /etc/mlops/web/certificate.pem /run/mlops/trust/ && kill -HUP "$0"' $$ &
exec nginx -p $folder -c $folder/nginx.conf -g "user $user; daemon off;"
