#!/bin/sh
# Beside nginx, until it is ended: keep.sh DIRECTORY HOSTNAME SECONDS COMMAND...
#
# Every SECONDS certificate.sh makes a certificate of ours anew that is about to end, for which DIRECTORY has to be
# writable; and when certificate.pem is another one than before, whoever put it there, COMMAND has nginx take it.
set -eu

[ $# -ge 4 ] || { echo "usage: $0 DIRECTORY HOSTNAME SECONDS COMMAND..." >&2; exit 2; }
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
directory=$1 hostname=$2 seconds=$3
shift 3

taken=$(cksum < "$directory/certificate.pem")
while sleep "$seconds"; do
    "$here/certificate.sh" "$directory" "$hostname" || continue # half of a pair, or a read-only folder: it said so
    there=$(cksum < "$directory/certificate.pem")
    if [ "$there" != "$taken" ] && "$@"; then
        taken=$there
    fi
done
