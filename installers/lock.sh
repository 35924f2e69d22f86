#!/bin/sh
# Pin every Python package that the installers fetch: version and SHA-256 of every file.
#
#   installers/lock.sh              requirements.lock (of pyproject.toml) and build.lock (of build.in);
#                                   versions that still fit stay
#   installers/lock.sh --upgrade    the newest versions
#
# Needs uv (on PATH, or $UV). The files serve Linux, macOS and Windows and every Python that Stoker
# supports; pip checks them with --require-hashes. Where the packages come from is each machine's own
# setting and is not written down: the digests decide.
set -eu

case ${1:-} in
'' | --upgrade) ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    [ "$1" = --help ] || exit 2
    exit
    ;;
esac
cd "$(dirname "$0")/.."

lock() { # lock SOURCE TARGET [--upgrade]
    UV_CUSTOM_COMPILE_COMMAND=installers/lock.sh "${UV:-uv}" pip compile --quiet \
        --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-emit-index-url --no-emit-find-links \
        ${3:+"$3"} --output-file "$2" "$1"
}

lock pyproject.toml installers/requirements.lock "${1:-}"
lock installers/build.in installers/build.lock "${1:-}"
