#!/bin/sh
# A certificate for the entry, unless there is one: certificate.sh DIRECTORY HOSTNAME
#
# DIRECTORY/certificate.pem and key.pem. One that somebody else made is kept as it is. One of ours, which is its own
# issuer and can sign no other, is made anew when it ends within 30 days or is for another name; keep.sh does so in time.
set -eu
umask 077

ours="mlops self-signed"

fail() {
    echo "error: $*" >&2
    exit 1
}

[ $# -eq 2 ] || { echo "usage: $0 DIRECTORY HOSTNAME" >&2; exit 2; }
directory=$1 hostname=$2
certificate=$directory/certificate.pem key=$directory/key.pem
case $hostname in
    "" | -* | *[!A-Za-z0-9.:-]*) fail "'$hostname' is no host name; give a name such as mlops.example.com, or an address" ;;
    *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*)
        name="IP:$hostname" check="-checkip" ;;
    *) name="DNS:$hostname" check="-checkhost" ;;
esac

if [ -e "$certificate" ] || [ -e "$key" ]; then
    [ -s "$certificate" ] && [ -s "$key" ] || fail "$directory has one of certificate.pem and key.pem; add or remove the other"
    belongs=$(openssl x509 -in "$certificate" -noout -pubkey 2>/dev/null) || fail "$certificate is no certificate; replace it"
    [ "$belongs" = "$(openssl pkey -in "$key" -pubout 2>/dev/null < /dev/null)" ] ||
        fail "$key is not the key of $certificate, or is locked by a password; replace one of them"
    case $(openssl x509 -in "$certificate" -noout -issuer) in
        *"$ours"*) mine=yes ;;
        *) mine=no ;;
    esac
    matches=$(openssl x509 -in "$certificate" -noout "$check" "$hostname")
    if openssl x509 -in "$certificate" -noout -checkend 2592000 > /dev/null; then lasting=yes; else lasting=no; fi
    case $mine,$lasting,$matches in
        yes,yes,*"does match"*) exit 0 ;;
        yes,*) ;;
        no,no,*) echo "warning: $certificate ends within 30 days; put a new one there" >&2; exit 0 ;;
        no,*"NOT match"*) echo "warning: $certificate is not for $hostname" >&2; exit 0 ;;
        *) exit 0 ;;
    esac
fi

mkdir -p "$directory"
made=$(mktemp -d "$directory/.certificate.XXXXXX")
trap 'rm -rf "$made"' EXIT
names=$name,DNS:localhost,IP:127.0.0.1
[ "$hostname" != localhost ] || names=$name,IP:127.0.0.1
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 397 \
    -subj "/O=$ours/CN=mlops" -addext "subjectAltName=$names" -addext "extendedKeyUsage=serverAuth" \
    -addext "basicConstraints=critical,CA:FALSE" -addext "keyUsage=critical,digitalSignature" \
    -keyout "$made/key.pem" -out "$made/certificate.pem" 2> "$made/said" ||
    fail "openssl made no certificate for $hostname: $(tail -n 1 "$made/said")"
chmod 600 "$made/key.pem"
chmod 644 "$made/certificate.pem"
mv -f "$made/key.pem" "$key"
mv -f "$made/certificate.pem" "$certificate"
echo "made a self-signed certificate for $hostname: $certificate"
