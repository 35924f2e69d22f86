#!/usr/bin/env bash
# Lint, type-check and test this checkout in an environment of its own.
#
#   tests/run.sh                  everything (needs the package registries once)
#   tests/run.sh --quick          unit tests only, and no Debian packages
#   tests/run.sh -- -k store -x   what follows is passed on to pytest (the -- may be left out)
#
# Two test files run at a time; $STOKER_TEST_JOBS changes that (0: all in one process).
# The environment lives outside the checkout, one per checkout, Python and pyproject.toml:
# $STOKER_TEST_ENV, or a folder in ~/.cache/stoker-tests. The last line is pytest's closing line.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
readonly ROOT=$PWD

quick=
if [[ ${1:-} == --quick ]]; then quick=1; shift; fi
if [[ ${1:-} == -- ]]; then shift; fi
if [[ ${1:-} == --help || ${1:-} == -h ]]; then sed -n '2,10s/^# \{0,1\}//p' tests/run.sh; exit 0; fi

failed=()

# step NAME COMMAND...: run it, print its name and seconds, remember a failure.
step() {
  local name=$1 start=$SECONDS status=0
  shift
  printf '== %s\n' "$name"
  "$@" </dev/null || status=$?
  if ((status)); then failed+=("$name"); fi
  printf '== %s: %s in %d s\n' "$name" "$( ((status)) && echo FAILED || echo ok)" $((SECONDS - start))
  return "$status"
}

die() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

is_new_enough() {
  "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if is_new_enough "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  if command -v uv >/dev/null; then uv python find --no-project '>=3.11' 2>/dev/null; fi
}

# What the tests call, as Debian packages: yardsticks and clients; a session bus and a user manager;
# two desktops with panels; what builds and proves installers (wine only where it can run them); what
# compiles the native runtime.
readonly PACKAGES="
  openssl curl shellcheck
  dbus dbus-x11 dbus-user-session systemd desktop-file-utils libxml2-utils libplist-utils
  xvfb openbox libglib2.0-bin lxqt-panel xfce4-panel xfconf xdotool xclip scrot imagemagick x11-utils x11-xserver-utils
  sway waybar grim xwayland fonts-dejavu-core adwaita-icon-theme librsvg2-common
  debootstrap lintian man-db nsis wine wine64
  g++
"

# Without root or apt-get, the tests that lack a program say so.
debian_packages() {
  local package want=()
  for package in $PACKAGES; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      want+=("$package")
  done
  [[ -n $(find_python) ]] || want+=(python3)
  python3 -c 'import ensurepip' 2>/dev/null || want+=(python3-venv)
  ((${#want[@]})) || return 0
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not installed (needs root and apt-get): ${want[*]}"
    return 0
  fi
  install_packages "${want[@]}" || echo "apt-get could not install all of: ${want[*]}"
}

install_packages() {
  local package there=()
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null 2>&1
  for package; do
    if apt-cache show "$package" >/dev/null 2>&1; then there+=("$package"); fi
  done
  apt-get install -y -qq --no-install-recommends "${there[@]}" >/dev/null 2>&1 &&
    ((${#there[@]} == $#))
}

install_with_uv() {
  rm -rf "$env"
  # As pip does, trust this machine's own certificates.
  export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
  uv venv --quiet --seed --python "$python" "$env" &&
    uv pip install --quiet --python "$env/bin/python" -e . --group test --group lint
}

install_with_pip() {
  rm -rf "$env"
  "$python" -m venv "$env" &&
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' &&
    "$env/bin/python" -m pip install --quiet -e . --group test --group lint
}

make_environment() {
  if [[ -e $env/.complete ]]; then
    echo "using $env"
    return 0
  fi
  echo "making $env with $python"
  mkdir -p "$(dirname "$env")" || return
  { command -v uv >/dev/null && install_with_uv; } || install_with_pip || return
  touch "$env/.complete"
}

# Older environments of this same checkout are of no use any more.
remove_old_environments() {
  local old
  for old in "$cache/env-$checkout"-*; do
    if [[ -d $old && $old != "$env" ]]; then rm -rf "$old"; fi
  done
}

# Ten minutes the first time. Without it, the tests that need it say so; in CI they fail.
native_runtime() {
  python -m tests.fakes.native --build || [[ ${CI:-} != true ]]
}

hash_of() { "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:12])'; }

[[ $quick ]] || step "Debian packages" debian_packages
python=$(find_python)
[[ -n $python ]] || die "no Python 3.11 or newer was found"

cache=${HOME:-/nonexistent}/.cache/stoker-tests
mkdir -p "$cache" 2>/dev/null || cache=${TMPDIR:-/tmp}/stoker-tests-$(id -u)
checkout=$(printf %s "$ROOT" | hash_of)
env=${STOKER_TEST_ENV:-$cache/env-$checkout-$({ "$python" -V; cat pyproject.toml; } | hash_of)}

step "environment" make_environment || die "the environment could not be made"
[[ ${STOKER_TEST_ENV:-} ]] || remove_old_environments
export PATH="$env/bin:$PATH" PYTHONPYCACHEPREFIX="$env/pycache"
# Without bytecode, each of a thousand processes would compile every library that it imports.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE STOKER_HOME

step "ruff check" ruff check --quiet
step "ruff format" ruff format --check --quiet
step "codespell" codespell daemon tray service_files tests installers docs ./*.md
step "import contracts" lint-imports --no-cache
step "types" mypy
[[ $quick ]] || step "native runtime" native_runtime
((${#failed[@]})) && printf '== failed so far: %s\n' "${failed[*]}"

paths=()
if [[ $quick ]]; then paths=(tests/unit); fi
printf '== tests\n'
status=0
python -m pytest --numprocesses="${STOKER_TEST_JOBS:-2}" --dist=loadfile --no-loadscope-reorder --durations=10 --durations-min=5 ${paths[@]+"${paths[@]}"} "$@" </dev/null || status=$?
if ((${#failed[@]})); then exit 1; fi
exit "$status"
