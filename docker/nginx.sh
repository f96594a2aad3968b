#!/bin/sh
# Write nginx's configuration from the environment, check it, and become nginx.
set -eu
folder=/run/nginx-mlops
user=$(stat -c %G /etc/mlops/web) # whom the first start let read the users: `nginx`, and `www-data` in Debian's nginx
sh /opt/mlops/nginx/render.sh $folder
nginx -t -q -p $folder -c $folder/nginx.conf -g "user $user;"
exec nginx -p $folder -c $folder/nginx.conf -g "user $user; daemon off;"
