#!/bin/sh
# The first start: setup.sh DIRECTORY HOSTNAME makes what nginx needs and is not there: a certificate, and the user
# `admin` with a password made at random, in DIRECTORY/first-password. Again and again is fine.
set -eu
umask 077

[ $# -eq 2 ] || { echo "usage: $0 DIRECTORY HOSTNAME" >&2; exit 2; }
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
directory=$1 hostname=$2

mkdir -p "$directory"
# nginx that is started by root gives its workers to a user of their own, who has to read who may log in.
for group in nginx www-data; do
    if [ "$(id -u)" -eq 0 ] && getent group "$group" > /dev/null; then
        chgrp "$group" "$directory"
        chmod 2750 "$directory"
        break
    fi
done
"$here/certificate.sh" "$directory" "$hostname"
if [ ! -s "$directory/users" ]; then
    # Written first: a user whose password nobody knows would be for ever.
    openssl rand -hex 16 > "$directory/first-password.new"
    mv -f "$directory/first-password.new" "$directory/first-password"
    "$here/users.sh" "$directory" add admin < "$directory/first-password"
fi
if [ -e "$directory/first-password" ]; then
    echo "user 'admin', password in $directory/first-password; delete that file once you have it"
fi
