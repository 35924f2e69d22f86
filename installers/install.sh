#!/bin/sh
# Install or upgrade Stoker for this user, from the checkout that this file lies in.
# Needs no root and asks nothing. See --help.
#
# Layout: HOME_FOLDER/app/VERSION-ID is one complete Python environment; HOME_FOLDER/app/current
# points to the one in use. A new one is built beside it, and the link is switched in one step, so
# an interrupted install changes nothing; when the new daemon does not get well, the link goes back.
set -eu
umask 077

usage() {
    cat <<'TEXT'
Usage: installers/install.sh [OPTION…]

Installs Stoker for the current user and ends with an answered question. Run it again to upgrade:
models and settings stay.

  --model REF    pull this model and ask it (default: starter, 98 MB)
  --no-model     pull no model
  --no-start     do not start the daemon (one that runs is restarted all the same)
  --no-autostart do not start Stoker and its tray icon at login; an upgrade leaves that as it is
  --prefix DIR   keep everything in DIR: program, models, settings, state; the command is
                 DIR/bin/stoker. Default: the program and the models in your data folder, the
                 command in ~/.local/bin
  --help         this text
TEXT
}

# --- talking -----------------------------------------------------------------------------------

began=$(date +%s)
seconds_since() { echo $(($(date +%s) - $1)); }
say() { printf '%s\n' "$*"; }
quote() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; } # one word for a shell
fail() { # fail MESSAGE [WHAT TO DO NEXT]
    printf '\nStoker was not installed: %s\n' "$1" >&2
    if [ -n "${2:-}" ]; then printf '%s\n' "$2" >&2; fi
    exit 1
}

# busy LABEL PROGRAM…: run it with its output in the log; on a terminal, count the seconds. It must
# be a program, not a function, so that an interruption reaches it.
busy() {
    label=$1 start=$(date +%s)
    shift
    if [ -t 1 ]; then printf '  %s … ' "$label"; else printf '  %s …\n' "$label"; fi
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 1
        if [ -t 1 ]; then printf '\r  %s … %s s ' "$label" "$(seconds_since "$start")"; fi
    done
    result=0
    wait "$child" || result=$?
    child=
    if [ -t 1 ]; then printf '\r\033[K'; fi
    if [ "$result" -eq 0 ]; then say "  $label: done in $(seconds_since "$start") s"; fi
    return "$result"
}

# --- options -----------------------------------------------------------------------------------

model=starter start_daemon=yes autostart=yes prefix=
while [ $# -gt 0 ]; do
    case $1 in
    --model | --prefix)
        if [ $# -lt 2 ] || [ -z "$2" ]; then fail "$1 needs a value" "See --help."; fi
        if [ "$1" = --model ]; then model=$2; else prefix=$2; fi
        shift
        ;;
    --model=?*) model=${1#*=} ;;
    --prefix=?*) prefix=${1#*=} ;;
    --no-model) model= ;;
    --no-start) start_daemon= ;;
    --no-autostart) autostart= ;;
    --help | -h) usage && exit 0 ;;
    *) fail "there is no option $1" "See --help." ;;
    esac
    shift
done

source_folder=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source_folder/daemon/stoker/__init__.py" 2>/dev/null) || version=
[ -n "$version" ] || fail "this is not a checkout of Stoker: $source_folder" \
    "Run installers/install.sh from inside the folder that it came in."

# Where everything goes. With a prefix, or with STOKER_HOME, the command must know its home.
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
    / | "${HOME:-/}" | "${HOME:-/}/") fail "$STOKER_HOME is not a folder for Stoker alone" "Name a new folder." ;;
    esac
    export STOKER_HOME
    home_folder=$STOKER_HOME
else
    unset STOKER_HOME
    home_folder=${XDG_DATA_HOME:-$HOME/.local/share}/stoker
fi
app=$home_folder/app

# Another environment's variables must not leak into this one.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 # as pip does: this machine's own certificates are trusted

# --- Python ------------------------------------------------------------------------------------

has() { command -v "$1" >/dev/null 2>&1; }

# Without Apple's tools, /usr/bin/python3 is a stub that opens a window.
is_stub() { [ "$(command -v "$1")" = /usr/bin/python3 ] && [ "$(uname)" = Darwin ] && ! xcode-select -p >/dev/null 2>&1; }

is_new_enough() {
    has "$1" && ! is_stub "$1" &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() { # a Python that is new enough, one that can make environments if there is one
    newest=
    for candidate in python3.13 python3.12 python3.11 python3 python3.14; do
        if is_new_enough "$candidate"; then
            newest=${newest:-$candidate}
            if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
                echo "$candidate" && return
            fi
        fi
    done
    echo "$newest"
}

# The exact command that brings a Python with venv to this system.
mending_command() {
    sudo='sudo '
    if [ "$(id -u)" -eq 0 ]; then sudo=; fi
    if has apt-get; then
        package=python3-venv
        if [ -n "$python" ]; then
            package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        elif ! apt-cache show python3 2>/dev/null | grep -Eq '^Version: 3\.(1[1-9]|[2-9][0-9])'; then
            for minor in 14 13 12 11; do
                package=python3.$minor-venv
                if apt-cache show "$package" >/dev/null 2>&1; then break; fi
                package=
            done
        fi
        if [ -n "$package" ]; then say "${sudo}apt-get update && ${sudo}apt-get install -y $package" && return; fi
    elif has dnf; then
        if grep -q '^ID=fedora' /etc/os-release 2>/dev/null; then package=python3; else package=python3.12; fi
        say "${sudo}dnf install -y $package" && return
    elif has pacman; then say "${sudo}pacman -S --needed python" && return
    elif has zypper; then say "${sudo}zypper install -y python312" && return
    elif has apk; then say "${sudo}apk add python3 py3-pip" && return
    elif has brew; then say "brew install python@3.13" && return
    fi
    say "python3 -m pip install --user uv    (uv brings its own Python)"
}

python=$(find_python)
has uv || [ -n "$python" ] || fail "Python 3.11 or newer is needed, and there is none here." \
    "This command mends it; then run the installer again:
    $(mending_command)"
has uv || "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || fail \
    "$("$python" -V) is here, but its venv module is not." \
    "This command mends it; then run the installer again:
    $(mending_command)"

# The built-in engine's wheel brings all but this: every desktop has it, a bare system may not.
has_openmp() { # has_openmp PYTHON
    [ "$(uname)" != Linux ] || "$1" -I -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' >/dev/null 2>&1
}

openmp_command() {
    sudo='sudo '
    if [ "$(id -u)" -eq 0 ]; then sudo=; fi
    if has apt-get; then say "${sudo}apt-get update && ${sudo}apt-get install -y libgomp1"
    elif has dnf; then say "${sudo}dnf install -y libgomp"
    elif has pacman; then say "${sudo}pacman -S --needed gcc-libs"
    elif has zypper; then say "${sudo}zypper install -y libgomp1"
    elif has apk; then say "${sudo}apk add libgomp"
    else say "(install the package that brings libgomp.so.1)"
    fi
}

# --- one installer at a time, and what an interruption undoes ------------------------------------

mkdir -p "$app" "$bin" || fail "$app and $bin cannot be written" "Name another place with --prefix DIR."
chmod 700 "$home_folder" "$app"
lock=$app/.installing log=$app/install.log
child='' new='' switched='' previous='' was_running='' login=''

if ! mkdir "$lock" 2>/dev/null; then
    other=$(cat "$lock/pid" 2>/dev/null || echo none)
    if [ "$other" != none ] && kill -0 "$other" 2>/dev/null; then
        fail "another installer is running (pid $other)" "Wait for it to end. If that is another program, remove $lock"
    fi
    rm -rf "$lock" && mkdir "$lock" # its owner is dead
fi
echo $$ >"$lock/pid"

# Not bin/stoker: pip's own launchers break when the path holds a $ or a quote. What starts at login
# must be our launcher, though, because it outlives this version.
command=$bin/stoker
stoker() { STOKER_COMMAND=$command "$new/bin/python" -I -m stoker "$@"; }

# Point app/current to an environment, in one step.
switch_to() {
    "$1/bin/python" -I -c '
import os, sys
target, link = sys.argv[1:]
if os.path.lexists(link + ".new"): os.unlink(link + ".new")
os.symlink(os.path.basename(target), link + ".new")
os.replace(link + ".new", link)' "$1" "$app/current"
}

roll_back() {
    if [ -n "$previous" ]; then
        stoker stop >>"$log" 2>&1 || "$previous/bin/python" -I -m stoker stop >>"$log" 2>&1 || true
        switch_to "$previous"
        say "The version before is in use again: $(basename "$previous")."
        if [ -n "$was_running" ]; then
            "$previous/bin/python" -I -m stoker start >>"$log" 2>&1 || say "It could not be started; see stoker logs."
        fi
    elif [ -n "$login" ]; then
        stoker autostart off >>"$log" 2>&1 || true
    fi
    switched=
}

finish() { # runs at every end, also after Ctrl-C
    result=$?
    trap - EXIT INT TERM HUP
    trap '' PIPE # nobody may be reading any more; what follows must be done all the same
    if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
    if [ -n "$switched" ]; then roll_back; fi
    if [ -n "$new" ] && [ ! -e "$new/.complete" ]; then rm -rf "$new"; fi
    rm -rf "$lock"
    exit "$result"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
trap 'exit 141' PIPE

# --- build ---------------------------------------------------------------------------------------

# What is installed, as a number: the same source gives the same id, and is not installed twice.
source_id() {
    (cd "$source_folder" && find daemon tray service_files pyproject.toml installers/*.lock -type f ! -name '*.pyc' |
        LC_ALL=C sort | while read -r file; do cksum "$file"; done | cksum | cut -d ' ' -f 1)
}

works() { [ -e "$1/.complete" ] && "$1/bin/python" -I -m stoker --version >/dev/null 2>&1; }

# Versions and digests of everything that is fetched are pinned; see lock.sh.
install_packages() { # install_packages LABEL INSTALLER…
    label=$1
    shift
    busy "the libraries$label" "$@" --require-hashes -r "$source_folder/installers/requirements.lock" \
        -r "$source_folder/installers/build.lock" &&
        busy "the program" "$@" --no-deps --no-build-isolation "$source_folder"
}

make_environment() {
    if has uv; then
        uv venv --seed --python "${python:-3.13}" "$new" >>"$log" 2>&1 && install_packages " (uv)" \
            uv pip install --python "$new/bin/python" --compile-bytecode && return
        [ -n "$python" ] || return 1
        rm -rf "$new" # uv does not read pip's settings; pip may reach what uv does not
    fi
    "$python" -m venv "$new" >>"$log" 2>&1 && install_packages "" "$new/bin/python" -m pip install
}

say "Installing Stoker $version for $(id -un) in $home_folder"
: >"$log"
# A folder without .complete is what a killed installer left.
for old in "$app"/[0-9]*; do
    if [ -d "$old" ] && [ ! -e "$old/.complete" ]; then rm -rf "$old"; fi
done
if [ -L "$app/current" ]; then
    previous=$(CDPATH='' cd -P -- "$app/current" 2>/dev/null && pwd) || previous=
    if [ -n "$previous" ] && ! works "$previous"; then previous=; fi # its Python is gone
fi

new=$app/$version-$(source_id)
if works "$new"; then
    say "  the program: already there"
else
    if [ -e "$new" ]; then new=$new-$began; fi # it is there but does not work
    free_kib=$(df -Pk "$app" | awk 'NR == 2 {print $4}')
    if [ "${free_kib:-9999999}" -lt 1000000 ]; then
        fail "less than 1 GB is free in $app" "Free some space, or name another place with --prefix DIR."
    fi
    if ! make_environment || ! stoker --version >>"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail "its Python packages could not be installed." \
            "Check the network and pip's settings, then run it again. All output: $log"
    fi
    has_openmp "$new/bin/python" || fail "the engine needs the library libgomp.so.1, and it is not here." \
        "This command mends it; then run the installer again:
    $(openmp_command)"
    : >"$new/.complete"
fi

# --- switch --------------------------------------------------------------------------------------

json_field() { # json_field KEY…: from the JSON on stdin; nothing when it is not there
    "$new/bin/python" -I -c '
import json, sys
value = json.load(sys.stdin)
for key in sys.argv[1:]:
    value = value[int(key) if isinstance(value, list) else key]
print(value)' "$@" 2>/dev/null
}

# The daemon runs, and its endpoint answers (not through a proxy).
is_healthy() {
    base_url=$(stoker status --json 2>>"$log" | json_field server base_url) &&
        "$new/bin/python" -I -c '
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
opener.open(sys.argv[1].removesuffix("/v1") + "/health", timeout=10).close()' "$base_url" >>"$log" 2>&1
}

# A launcher resolves app/current once, so that an upgrade changes nothing under a running daemon.
link_command() { # link_command NAME MODULE; never over a file that is not ours
    link=$bin/$1
    if [ -L "$link" ]; then
        case $(readlink "$link") in "$app"/*) ;; *) return 1 ;; esac
    elif [ -e "$link" ] && ! grep -q '^# stoker launcher' "$link"; then
        return 1
    fi
    rm -f "$link.new"
    {
        printf '%s\n' '#!/bin/sh' '# stoker launcher'
        if [ -n "${STOKER_HOME:-}" ]; then
            printf '%s\n' "[ -n \"\${STOKER_HOME:-}\" ] || STOKER_HOME=$(quote "$STOKER_HOME")" 'export STOKER_HOME'
        fi
        printf '%s\n' "app=$(quote "$app/") STOKER_COMMAND=$(quote "$bin/stoker")" 'export STOKER_COMMAND' \
            "exec \"\$app\$(readlink \"\${app}current\")/bin/python\" -I -m $2 \"\$@\""
    } >"$link.new"
    chmod 755 "$link.new"
    mv -f "$link.new" "$link"
}

# At the first install Stoker starts at login from now on; an upgrade only renews what is on.
set_login() {
    if [ -n "$first" ] && [ -n "$autostart" ] && [ "$command" = "$bin/stoker" ]; then
        if login=$(stoker autostart on 2>&1); then login=on; else
            printf '%s\n' "$login" >>"$log"
            say "  start at login could not be switched on: $(printf '%s\n' "$login" | sed -n 's/^error: //p' | head -n 1)"
            login=
        fi
    else
        stoker autostart refresh >>"$log" 2>&1 || true
    fi
}

if stoker status >/dev/null 2>&1; then was_running=yes; fi
unchanged='' first=''
if [ ! -L "$app/current" ]; then first=yes; fi
if [ "$previous" = "$new" ]; then # nothing to switch, nothing to go back to, no answer to interrupt
    previous=
    if [ -n "$was_running" ] && is_healthy; then unchanged=yes; fi
fi
if [ -z "$unchanged" ]; then
    switched=yes # from here on, an end of any kind goes back
    if [ -n "$was_running" ]; then busy "stopping the running daemon" "$new/bin/python" -I -m stoker stop; fi
    switch_to "$new"
fi
if ! link_command stoker stoker; then
    command=$app/current/bin/stoker
    say "  $bin/stoker is not ours and was left alone; the command is $command"
fi
link_command stoker-tray stoker_tray || say "  $bin/stoker-tray is not ours and was left alone"
set_login
if [ -z "$unchanged" ] && [ -n "$start_daemon$was_running" ]; then
    if ! busy "starting the daemon" "$new/bin/python" -I -m stoker start || ! is_healthy; then
        grep -E '^(error|hint):' "$log" | tail -n 2 >&2 || true
        if [ -z "$previous" ]; then
            if [ -n "$login" ]; then stoker autostart off >>"$log" 2>&1 || true; fi
            switched=
            fail "the daemon does not start." "The program is there: $(quote "$bin/stoker") doctor tells more."
        fi
        fail "the new daemon does not start." "Its log: $log"
    fi
fi
switched=

# The icon of this session, only where there is a desktop; one that runs is replaced.
if [ -n "$start_daemon" ] && { [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] || [ "$(uname)" = Darwin ]; }; then
    # shellcheck disable=SC2086  # nothing, where there is no setsid
    STOKER_COMMAND=$command $(command -v setsid) "$new/bin/python" -I -m stoker_tray --replace >>"$log" 2>&1 </dev/null &
fi

# Keep the one in use and the last good one.
for old in "$app"/[0-9]*; do
    if [ "$old" != "$new" ] && [ "$old" != "$previous" ]; then rm -rf "$old"; fi
done

# --- model and first question --------------------------------------------------------------------

model_id() { stoker show "$1" --json 2>/dev/null | json_field id; } # of a stored model

newest_model() {
    stoker list --json | "$new/bin/python" -I -c '
import json, sys
models = json.load(sys.stdin)
print(max(models, key=lambda model: model["verified_at"] or "")["id"])'
}

question='What is the capital of France? Answer in one short sentence.' # anybody can check it
if [ -n "$model" ] && [ -n "$start_daemon" ]; then
    if id=$(model_id "$model"); then
        say "  the model $id: already there"
    else
        say "  pulling and verifying the model $model"
        stoker pull "$model" || fail "the model $model could not be pulled, but Stoker is there and runs." \
            "Try again with: $command pull $model"
        id=$(model_id "$model" || newest_model)
    fi
    say ""
    say "> $question"
    stoker run "$id" --temperature 0 --max-tokens 60 "$question" </dev/null ||
        fail "the model $id did not answer, but Stoker is there and runs." "See: $command logs"
fi

# --- what to do with it ----------------------------------------------------------------------------

say ""
say "Stoker $version is installed ($(seconds_since "$began") s)."
say ""
show=$command
case $show in *[!A-Za-z0-9_/.@+-]*) show=$(quote "$show") ;; esac
case ":$PATH:" in *":$bin:"*) if [ "$command" = "$bin/stoker" ]; then show=stoker; fi ;; esac
if [ -n "$start_daemon$was_running" ]; then
    say "  Endpoint   $base_url   (OpenAI-compatible; any API key will do)"
    say "  Client     export OPENAI_BASE_URL=$base_url OPENAI_API_KEY=none"
    if [ -n "${id:-}" ]; then
        say "  Chat       $show run $id"
    fi
    say "  Stop       $show stop      (again: $show start)"
    better=$(stoker doctor --json 2>/dev/null | json_field recommended 0 name) || better=
    if [ -n "$better" ] && [ "$better" != "$model" ]; then
        say "  Better     $show pull $better      (recommended for this machine)"
    fi
else
    say "  Start      $show start"
fi
if [ "$login" = on ]; then say "  Login      Stoker and its tray icon start at login; to undo: $show autostart off"; fi
uninstall=$source_folder/installers/uninstall.sh
case $uninstall in *[!A-Za-z0-9_/.@+-]*) uninstall=$(quote "$uninstall") ;; esac
if [ -n "$prefix" ]; then uninstall="$uninstall --prefix $(quote "$STOKER_HOME")"; fi
say "  Remove     $uninstall      (--purge: models and settings too)"
if [ "$show" != stoker ] && [ "$command" = "$bin/stoker" ]; then
    say ""
    say "$bin is not on your PATH. This adds it for new terminals:"
    say "  echo 'export PATH=\"$bin:\$PATH\"' >> ~/.profile"
fi
