#!/bin/sh
# Who may log in: users.sh DIRECTORY add|remove|list [NAME]
#
# `add` reads a password from standard input (12 characters or more); an empty line, or nothing, has one made and
# printed, this once. It replaces the password of a user that there is. nginx reads DIRECTORY/users in every request, so
# all of this takes effect at once. Passwords are kept as SHA-512 crypt.
set -eu
umask 077

fail() {
    echo "error: $*" >&2
    exit 1
}

usage() {
    echo "usage: $0 DIRECTORY add|remove|list [NAME]" >&2
    exit 2
}

[ $# -ge 2 ] || usage
directory=$1 action=$2 name=${3:-} users=$1/users
[ -d "$directory" ] || fail "there is no folder $directory; setup.sh makes it"
if [ "$action" = list ]; then
    [ $# -eq 2 ] || usage
    [ ! -e "$users" ] || cut -d : -f 1 "$users"
    exit 0
fi
[ $# -eq 3 ] || usage
case $name in
    "" | -* | *[!A-Za-z0-9._@-]*) fail "'$name' is no user name; use letters, digits and . _ @ -" ;;
esac

others() { # everybody's line but one's
    [ ! -e "$users" ] || awk -F : -v name="$name" '$1 != name' "$users"
}

replace() { # whole, or not at all
    cat > "$users.new"
    chmod 640 "$users.new" # nginx's workers read it through the folder's group, which setup.sh sees to
    mv -f "$users.new" "$users"
}

read_password() {
    if [ -t 0 ]; then
        printf 'password for %s (empty: one is made): ' "$name" >&2
        trap 'stty echo' EXIT INT TERM
        stty -echo
        IFS= read -r password || password=
        stty echo
        trap - EXIT INT TERM
        echo >&2
    else
        IFS= read -r password || [ -n "$password" ] || password=
    fi
}

case $action in
    add)
        read_password
        made=no
        if [ -z "$password" ]; then
            password=$(openssl rand -hex 16) made=yes
        fi
        [ ${#password} -ge 12 ] || fail "the password is shorter than 12 characters; take a longer one, or none to have it made"
        crypted=$(printf '%s\n' "$password" | openssl passwd -6 -stdin)
        exec 9> "$directory/.users.lock"
        flock 9
        { others; printf '%s:%s\n' "$name" "$crypted"; } | replace
        [ $made = no ] || printf '%s\n' "$password"
        ;;
    remove)
        exec 9> "$directory/.users.lock"
        flock 9
        "$0" "$directory" list | grep -Fqx -e "$name" || fail "there is no user '$name'; users.sh $directory list shows them"
        others | replace
        ;;
    *) usage ;;
esac
