#!/bin/sh
# Write the configuration for an nginx, in a container (docker/nginx.sh) or without.
#
#   MLOPS_HOSTNAME=mlops.example.com MLOPS_WEB=/etc/mlops/web ... nginx/render.sh DIRECTORY
#   nginx -p DIRECTORY -c DIRECTORY/nginx.conf -g 'daemon off;'
#
# The variables are those of 05-mlops.envsh. Needs envsubst (Debian: gettext-base).
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export MLOPS_PAGES="$here/pages"
. "$here/05-mlops.envsh"

# Of the templates' dollar signs only these are ours.
names=$(awk 'BEGIN { for (name in ENVIRON) if (name ~ /^(MLOPS|NGINX)_/) printf "${%s} ", name }' < /dev/null)
mkdir -p "$1/conf.d" "$1/snippets"
cp "$here/nginx.conf" "$1/nginx.conf"
cp "$here"/snippets/*.conf "$1/snippets/"
for template in "$here"/templates/*.template; do
    envsubst "$names" < "$template" > "$1/conf.d/$(basename "$template" .template)"
done
