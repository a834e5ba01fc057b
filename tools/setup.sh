#!/bin/sh
# Installs what the tests need besides Go: a C compiler for the race detector,
# the mosquitto clients, and Node.js with the mqtt package. What is there
# already is left alone.
set -eu

need=""
command -v cc >/dev/null 2>&1 || need="$need gcc libc6-dev"
command -v mosquitto_pub >/dev/null 2>&1 || need="$need mosquitto-clients"
command -v node >/dev/null 2>&1 || need="$need nodejs"
command -v npm >/dev/null 2>&1 || need="$need npm"

if [ -n "$need" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: please install:$need" >&2
        exit 1
    fi
    sudo=""
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "setup: please install as root: apt-get install$need" >&2
            exit 1
        fi
        sudo=sudo
    fi
    $sudo apt-get update -q
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $need
fi

js=internal/plays/js
if [ ! -d "$js/node_modules/mqtt" ]; then
    (cd "$js" && npm ci --no-audit --no-fund --silent)
fi
