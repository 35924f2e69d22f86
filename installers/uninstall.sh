#!/bin/sh
# Remove Stoker for this user. Models and settings stay, unless --purge is given. See --help.
set -eu

usage() {
    cat <<'TEXT'
Usage: installers/uninstall.sh [--purge] [--prefix DIR]

Stops the daemon, its workers and the tray icon, ends the start at login, and removes the program
and the commands.

  --purge        remove models, settings, history and logs too
  --prefix DIR   where it was installed with install.sh --prefix DIR
  --help         this text
TEXT
}

began=$(date +%s)
say() { printf '%s\n' "$*"; }
fail() {
    printf '\nStoker was not removed: %s\n' "$1" >&2
    if [ -n "${2:-}" ]; then printf '%s\n' "$2" >&2; fi
    exit 1
}

purge='' prefix=''
while [ $# -gt 0 ]; do
    case $1 in
    --purge) purge=yes ;;
    --prefix)
        if [ $# -lt 2 ] || [ -z "$2" ]; then fail "--prefix needs a folder" "See --help."; fi
        prefix=$2
        shift
        ;;
    --prefix=?*) prefix=${1#*=} ;;
    --help | -h) usage && exit 0 ;;
    *) fail "there is no option $1" "See --help." ;;
    esac
    shift
done

if [ -n "$prefix" ]; then
    case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
    STOKER_HOME=${prefix%/}
    bin=$STOKER_HOME/bin
else
    [ -n "${HOME:-}" ] || fail "HOME is not set" "Set it, or give --prefix DIR."
    bin=$HOME/.local/bin
fi
if [ -n "${STOKER_HOME:-}" ]; then
    case $STOKER_HOME in /*) ;; *) STOKER_HOME=$PWD/$STOKER_HOME ;; esac
    case $STOKER_HOME in
    / | "${HOME:-/}" | "${HOME:-/}/") fail "$STOKER_HOME is not a folder for Stoker alone" "Unset STOKER_HOME." ;;
    esac
    export STOKER_HOME
    home_folder=$STOKER_HOME
else
    unset STOKER_HOME
    home_folder=${XDG_DATA_HOME:-$HOME/.local/share}/stoker
fi
app=$home_folder/app
unset PYTHONPATH PYTHONHOME
real_app=$(CDPATH='' cd -P -- "$app" 2>/dev/null && pwd) || real_app=$app

# --- stop ------------------------------------------------------------------------------------------

# Every process whose program lies in the app folder: the daemon, its workers, a command.
running_pids() {
    if [ -d /proc/self ]; then
        for process in /proc/[0-9]*; do
            first=$({ tr '\0' '\n' <"$process/cmdline" | head -n 1; } 2>/dev/null) || continue
            case $first in "$app"/* | "$real_app"/*) printf '%s\n' "${process#/proc/}" ;; esac
        done
    else
        ps -axo pid=,command= | while read -r pid line; do
            case $line in "$app"/* | "$real_app"/*) printf '%s\n' "$pid" ;; esac
        done
    fi
}

stop_everything() {
    if [ -x "$app/current/bin/python" ]; then "$app/current/bin/python" -I -m stoker stop 2>/dev/null || true; fi
    for signal in TERM KILL; do
        left=$(running_pids)
        [ -n "$left" ] || return 0
        say "Stopping what still runs (signal $signal): $(echo "$left" | tr '\n' ' ')"
        # shellcheck disable=SC2086  # one word per pid
        kill -s "$signal" $left 2>/dev/null || true
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            [ -n "$(running_pids)" ] || return 0
            sleep 1
        done
    done
    fail "these processes do not end: $(running_pids | tr '\n' ' ')" "End them, then run it again."
}

# Where the daemon keeps its things; its own word when it still works, else the usual places.
folders() {
    "$app/current/bin/python" -I -c '
import os
from stoker import paths
places = paths.from_environment(os.environ)
for folder in (places.data, places.config, places.state, places.run): print(folder)' 2>/dev/null && return
    if [ -n "${STOKER_HOME:-}" ]; then
        printf '%s\n' "$STOKER_HOME" "$STOKER_HOME" "$STOKER_HOME/state" "$STOKER_HOME/run"
    elif [ "$(uname)" = Darwin ]; then
        support="$HOME/Library/Application Support/stoker"
        printf '%s\n' "$support"
    else
        printf '%s\n' "$home_folder" "${XDG_CONFIG_HOME:-$HOME/.config}/stoker" \
            "${XDG_STATE_HOME:-$HOME/.local/state}/stoker"
    fi
}

# A folder that only Stoker uses goes as a whole. A STOKER_HOME was chosen by a person and may hold
# other things: there, only what Stoker makes is removed.
purge_folder() {
    if [ -z "${STOKER_HOME:-}" ] || [ -e "$1/daemon.lock" ] || [ -d "$1/empty" ]; then
        rm -rf "${1:?}"
    else
        rm -rf "$1/store" "$1/runtimes"
        rm -f "$1/config.toml"
        rmdir "$1" 2>/dev/null || true
    fi
}

# Before the program goes, it takes back what it made to start at login.
end_login() {
    [ -x "$app/current/bin/python" ] || return 0
    STOKER_COMMAND=$bin/stoker "$app/current/bin/python" -I -m stoker autostart off >/dev/null 2>&1 ||
        say "Start at login could not be switched off; what is left of it does nothing without the program."
}

places=$(folders)
if [ ! -d "$app" ]; then say "No program was found in $home_folder."; fi
end_login
stop_everything

# --- remove ----------------------------------------------------------------------------------------

quoted=$(printf '%s' "$app" | sed "s/'/'\\\\''/g") # as install.sh writes it
for link in "$bin/stoker" "$bin/stoker-tray"; do
    if [ -L "$link" ]; then
        case $(readlink "$link") in "$app"/* | "$real_app"/*) rm -f "$link" && say "Removed $link" ;; esac
    elif [ -f "$link" ] && grep -q '^# stoker launcher' "$link" && grep -qF "$quoted/" "$link"; then
        rm -f "$link" && say "Removed $link"
    fi
done
if [ -d "$app" ]; then rm -rf "$app" && say "Removed $app"; fi
sockets=$(printf '%s\n' "$places" | sed -n 4p)
if [ -n "$sockets" ] && [ -d "$sockets/empty" ]; then rm -rf "$sockets"; fi

if [ -n "$prefix" ]; then rmdir "$bin" "$home_folder" 2>/dev/null || true; fi
if [ -n "$purge" ]; then
    # The deepest first: a folder is removed when those inside it are gone.
    printf '%s\n' "$places" "$home_folder" | sort -ru | while IFS= read -r folder; do
        [ -d "$folder" ] || continue
        purge_folder "$folder"
        if [ -d "$folder" ]; then
            say "Left $folder: it holds things that are not Stoker's"
        else
            say "Removed $folder"
        fi
    done
fi

if [ -z "$purge" ]; then
    say "Models and settings were kept in:"
    printf '%s\n' "$places" | sort -u | while IFS= read -r folder; do
        if [ -d "$folder" ]; then say "  $folder"; fi
    done
    say "To remove them too: $0 --purge${prefix:+ --prefix $prefix}"
fi
say "Stoker is removed ($(($(date +%s) - began)) s)."
