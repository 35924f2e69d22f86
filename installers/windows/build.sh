#!/bin/sh
# Build StokerSetup-VERSION.exe, the installer for Windows, on any system with NSIS.
#
#   installers/windows/build.sh --python-zip FILE --sha256 DIGEST [--output DIR] [--fast]
#
# FILE is the "Windows embeddable package (64-bit)" of CPython 3.11 or newer from python.org; DIGEST
# is its SHA-256 from the release page. Every package in it is pinned (installers/requirements.lock).
# --fast compresses little: for tests. Needs makensis, and a Python 3.11 with pip and venv.
set -eu

fail() { printf 'build.sh: %s\n' "$1" >&2; exit 1; }

python_zip='' digest='' output=. fast=''
while [ $# -gt 0 ]; do
    case $1 in
    --fast) fast=-DFAST ;;
    --help | -h) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 0 ;;
    --python-zip | --sha256 | --output)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --python-zip) python_zip=$2 ;;
        --sha256) digest=$2 ;;
        *) output=$2 ;;
        esac
        shift
        ;;
    *) fail "there is no option $1; see --help" ;;
    esac
    shift
done
[ -f "$python_zip" ] || fail "give the embeddable Python with --python-zip FILE"
[ -n "$digest" ] || fail "give its digest with --sha256"
command -v makensis >/dev/null || fail "makensis is not installed (Debian's package: nsis)"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
mkdir -p "$output"
output=$(CDPATH='' cd -- "$output" && pwd)
python_zip=$(CDPATH='' cd -- "$(dirname -- "$python_zip")" && pwd)/$(basename -- "$python_zip")
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/daemon/stoker/__init__.py")
python=${PYTHON:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONDONTWRITEBYTECODE=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- what is fetched or given is checked first -----------------------------------------------------

"$python" - "$python_zip" "$digest" "$work/payload/python" <<'PYTHON' || fail "that is not the Python that was named"
import hashlib, pathlib, re, sys, zipfile
file, digest, target = sys.argv[1:]
found = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
if found != digest.lower():
    sys.exit(f"{file} has the digest {found}, not {digest}")
target = pathlib.Path(target)
with zipfile.ZipFile(file) as archive:
    archive.extractall(target)  # zipfile keeps every name inside the target
paths = [path for path in target.glob("python3*._pth") if re.fullmatch(r"python3\d+\._pth", path.name)]
if len(paths) != 1 or not (target / "python.exe").is_file() or not (target / "pythonw.exe").is_file():
    sys.exit(f"{file} is no embeddable Python for Windows")
lines = paths[0].read_text("utf-8").splitlines()
paths[0].write_text("\n".join([*lines, "..\\site-packages", ""]), "utf-8")
(target.parent / "minor").write_text(paths[0].name.removeprefix("python3").removesuffix("._pth"))
PYTHON
minor=$(cat "$work/payload/minor")
rm "$work/payload/minor"

"$python" -m venv "$work/tools"
tools=$work/tools/bin/python
"$tools" -m pip install --quiet --require-hashes -r "$root/installers/build.lock"
"$tools" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$root"
"$tools" "$root/installers/select_lock.py" "$root/installers/requirements.lock" \
    --platform win32 --machine AMD64 --python "3.$minor" >"$work/requirements.txt"
site=$work/payload/site-packages
into_site() {
    "$tools" -m pip install --quiet --no-deps --no-compile --only-binary=:all: --platform win_amd64 \
        --implementation cp --python-version "3.$minor" --target "$site" "$@"
}
into_site --require-hashes -r "$work/requirements.txt"
into_site "$work"/wheel/stoker-*.whl
# `stoker pull` fetches wheels with pip.
"$tools" "$root/installers/select_lock.py" "$root/installers/build.lock" --platform win32 \
    --python "3.$minor" | grep '^pip==' >"$work/pip.txt"
into_site --require-hashes -r "$work/pip.txt"
rm -rf "${site:?}/bin"
find "$site" -name __pycache__ -prune -exec rm -rf {} +

# --- the installer ---------------------------------------------------------------------------------

# The icon is drawn by the very code that draws it in the tray.
"$tools" "$root/installers/select_lock.py" "$root/installers/requirements.lock" --platform linux \
    --python "3.$minor" | grep '^pillow==' >"$work/pillow.txt"
"$tools" -m pip install --quiet --no-deps --require-hashes -r "$work/pillow.txt"
"$tools" -m pip install --quiet --no-deps "$work"/wheel/stoker-*.whl
"$tools" -I -m stoker_tray.icons "$work/icons"
id=$version-$(find "$work/payload" -type f -exec cksum {} + | LC_ALL=C sort -k 3 | cut -d ' ' -f 1,2 | cksum | cut -d ' ' -f 1)
target=$output/StokerSetup-$version.exe
# shellcheck disable=SC2086  # nothing, or one word
makensis -V2 -WX -INPUTCHARSET UTF8 $fast -DVERSION="$version" -DID="$id" -DPAYLOAD="$work/payload" \
    -DICON="$(find "$work/icons" -name stoker.ico)" -DLICENCE="$root/LICENSE" -DOUTFILE="$target" "$here/stoker.nsi"
printf '%s\n' "$target"
