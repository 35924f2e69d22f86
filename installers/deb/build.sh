#!/usr/bin/env bash
# Build stoker_VERSION_ARCH.deb from this checkout. See --help.
set -euo pipefail
umask 022
export LC_ALL=C.UTF-8

usage() {
  cat <<'TEXT'
Usage: installers/deb/build.sh [--output DIR] [--version-suffix TEXT] [--python MINOR]... [--fast]

Makes one package for this machine's architecture and for every Debian and Ubuntu whose python3 is
one of the MINORs. No root is needed.

  --output DIR            where to put it (default: dist/ in the checkout)
  --version-suffix TEXT   added to Stoker's version, as +1, when the same Stoker is packaged again
  --python MINOR          a Python to build for, as 3.11; may be repeated
                          (default: 3.11 3.12 3.13 3.14)
  --fast                  compress little: for tests
  --help                  this text

Needs dpkg-deb, strip and readelf (binutils), and a Python of one of the MINORs with pip: python3, or
$PYTHON. Every package that pip fetches is pinned by version and digest (installers/*.lock); pip's own
settings say where they come from. SOURCE_DATE_EPOCH is respected (default: the date of the last
commit); the same source gives the same bytes. DEBFULLNAME and DEBEMAIL name the maintainer.
TEXT
}

fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

# --- options ---------------------------------------------------------------------------------

output='' suffix='' minors=() compression=(-Zxz)
while (($#)); do
  case $1 in
    --output | --version-suffix | --python)
      [[ ${2:-} ]] || fail "$1 needs a value; see --help"
      case $1 in
        --output) output=$2 ;;
        --version-suffix) suffix=$2 ;;
        --python) minors+=("$2") ;;
      esac
      shift
      ;;
    --fast) compression=(-Zxz -z0) ;;
    --help | -h) usage; exit 0 ;;
    *) fail "there is no option $1; see --help" ;;
  esac
  shift
done
((${#minors[@]})) || minors=(3.11 3.12 3.13 3.14)
mapfile -t minors < <(printf '%s\n' "${minors[@]}" | sort -Vu)
oldest=${minors[0]} beyond=3.$((${minors[-1]#3.} + 1))
((${beyond#3.} - ${oldest#3.} == ${#minors[@]})) || fail "${minors[*]} leaves out a Python in between"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here root=${here%/installers/deb} installers=${here%/deb} python=${PYTHON:-python3}
output=${output:-$root/dist}

for tool in dpkg-deb strip readelf gzip; do
  command -v "$tool" >/dev/null || fail "$tool is missing; apt-get install dpkg binutils gzip"
done
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; apt-get install python3-pip"
own_minor=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[[ " ${minors[*]} " == *" $own_minor "* ]] ||
  fail "$python is $own_minor, which is none of ${minors[*]}; name another with \$PYTHON"

arch=$(dpkg --print-architecture)
case $arch in
  amd64) machine=x86_64 ;;
  arm64) machine=aarch64 ;;
  *) fail "there are no wheels of the built-in engine for $arch" ;;
esac
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
  SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null) || SOURCE_DATE_EPOCH=$(date +%s)
fi
export SOURCE_DATE_EPOCH
upstream=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/daemon/stoker/__init__.py")
[[ $upstream ]] || fail "daemon/stoker/__init__.py names no version"
readonly version=$upstream$suffix maintainer="${DEBFULLNAME:-Stoker developers} <${DEBEMAIL:-stoker-ai@users.noreply.github.com}>"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
readonly tree=$work/tree program=$work/tree/usr/lib/stoker doc=$work/tree/usr/share/doc/stoker
readonly shared=$program/lib/python3/site-packages

# --- wheels ------------------------------------------------------------------------------------

pip_() { PIP_ROOT_USER_ACTION=ignore "$python" -m pip -qq --disable-pip-version-check --no-input "$@"; }

# Sets tags: which wheels a Python of this minor takes on this architecture with glibc 2.28.
set_tags() {
  local minor=$1 glibc
  tags=(--only-binary=:all: --implementation=cp "--python-version=$minor")
  tags+=("--abi=cp${minor/./}" --abi=abi3 --abi=none)
  for glibc in 2_{28..5} {2014,2010,1}; do
    tags+=("--platform=manylinux${glibc/#2_/_2_}_$machine")
  done
}

fetch() { # fetch MINOR LOCK FOLDER
  set_tags "$1"
  "$python" -I "$installers/select_lock.py" "$installers/$2" \
    --platform linux --machine "$machine" --python "$1" >"$work/requirements.txt"
  pip_ download "${tags[@]}" --no-deps --require-hashes --requirement "$work/requirements.txt" --dest "$3"
}

unpack() { # unpack MINOR FOLDER WHEEL...
  local folder=$2
  set_tags "$1"
  shift 2
  pip_ install "${tags[@]}" --no-deps --no-index --no-compile --target "$folder" "$@"
}

# Stoker's own wheel, built by the pinned hatchling and by nothing that pip would choose itself.
build_own_wheel() {
  fetch "$own_minor" build.lock "$work/tools"
  unpack "$own_minor" "$work/path" "$work/tools"/*.whl
  PYTHONPATH=$work/path pip_ wheel --no-deps --no-build-isolation --wheel-dir "$work/wheels" "$root"
  mv "$work/tools"/pip-*.whl "$work/wheels/"
}

# A wheel that every Python takes goes to lib/python3, one that was compiled for a Python to that
# Python's own site-packages. So one package serves them all, and costs a few libraries for each.
install_wheels() {
  local minor libs places=()
  for minor in "${minors[@]}"; do fetch "$minor" requirements.lock "$work/wheels"; done
  unpack "$own_minor" "$shared" "$work/wheels"/*-none-any.whl "$work/wheels"/*-abi3-*.whl
  for minor in "${minors[@]}"; do
    places+=("$program/lib/python$minor/site-packages")
    unpack "$minor" "${places[-1]}" "$work/wheels"/*"-cp${minor/./}-cp${minor/./}-"*.whl
    printf '../../python3/site-packages\n' >"${places[-1]}/stoker.pth"
  done
  for libs in "${places[0]}"/*.libs; do share "${libs##*/}" "${places[@]}"; done
}

# share FOLDER PLACE...: the libraries that a wheel brings along, kept once if they are all the same.
share() {
  local folder=$1 place
  shift
  for place; do diff -rq "$1/$folder" "$place/$folder" >/dev/null || return 0; done
  mv "$1/$folder" "$shared/"
  for place; do
    rm -rf "${place:?}/$folder"
    ln -s "../../python3/site-packages/$folder" "$place/$folder"
  done
}

# What a package of the system does not hold: pip's records, command scripts, other systems' programs.
tidy() {
  local file
  "$python" -I "$here/copyright.py" "$program" >"$doc/copyright"
  rm -rf "$program/lib"/*/site-packages/bin
  find "$program/lib" \( -name '*.exe' -o -name '*.sh' -o -name '*.pyx' -o -name '*.pxd' \
    -o -path '*.dist-info/licenses/*' -o -path '*.dist-info/LICENSE*' \
    -o -path '*.dist-info/COPYING*' -o -path '*.dist-info/RECORD' -o -path '*.dist-info/direct_url.json' \
    -o -path '*.dist-info/REQUESTED' -o -path '*.dist-info/INSTALLER' \) -type f -delete
  find "$program/lib" -type d -empty -delete
  find "$program/lib" -name '*.py' -exec sed -i '1s/^#!.*$/#/' {} + # modules, not commands
  # Two thirds of the bytes are debugging symbols.
  find "$program/lib" \( -name '*.so' -o -name '*.so.*' \) -type f | while read -r file; do
    if [[ $(readelf --section-headers "$file") == *' .symtab '* ]]; then strip --strip-unneeded "$file"; fi
  done
  find "$program" -type d -exec chmod 755 {} +
  find "$program" -type f -exec chmod 644 {} +
}

# --- the package ---------------------------------------------------------------------------------

add_files() {
  mkdir -p "$program/bin" "$tree/usr/bin" "$tree/usr/share/applications" \
    "$tree/usr/share/man/man1" "$tree/usr/share/python3/runtime.d" "$tree/usr/share/lintian/overrides"
  ln -s ../../../bin/python3 "$program/bin/python3"
  printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$program/pyvenv.cfg"
  install -m 755 "$here/files/stoker" "$here/files/stoker-tray" "$tree/usr/bin/"
  install -m 755 "$here/files/bytecode" "$program/"
  install -m 755 "$here/files/processes.py" "$program/processes"
  install -m 755 "$here/files/stoker.rtupdate" "$tree/usr/share/python3/runtime.d/"
  install -m 644 "$here/files/stoker-tray.desktop" "$tree/usr/share/applications/"
  install -m 644 "$here/files/lintian-overrides" "$tree/usr/share/lintian/overrides/stoker"
  install -m 644 "$here/files/README.Debian" "$doc/"

  # With what is in the package: the pages of this very program, its icons drawn by itself.
  local path=$program/lib/python$own_minor/site-packages:$shared
  PYTHONPATH=$path "$python" -P -s -B "$installers/man/make_man.py" "$tree/usr/share/man/man1"
  PYTHONPATH=$path "$python" -P -s -B -m stoker_tray.icons "$work/icons" >/dev/null
  mkdir -p "$tree/usr/share/icons"
  cp -r "$work/icons/hicolor" "$tree/usr/share/icons/"
  gzip -9n "$tree/usr/share/man/man1"/*.1
  {
    printf 'stoker (%s) unstable; urgency=medium\n\n' "$version"
    printf '  * Version %s of Stoker. What is new: NEWS.gz beside this file.\n\n' "$upstream"
    printf ' -- %s  %s\n' "$maintainer" "$(date -Ru -d "@$SOURCE_DATE_EPOCH")"
  } | gzip -9n >"$doc/changelog.gz"
  gzip -9nc "$root/CHANGELOG.md" >"$doc/NEWS.gz"
}

add_control() {
  local size
  size=$(du -k --apparent-size -s "$tree" | cut -f 1)
  mkdir "$tree/DEBIAN"
  sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s|@MAINTAINER@|$maintainer|" -e "s/@SIZE@/$size/" \
    -e "s/@OLDEST@/$oldest/" -e "s/@BEYOND@/$beyond/" "$here/files/control.in" >"$tree/DEBIAN/control"
  install -m 755 "$here/files/postinst" "$here/files/prerm" "$tree/DEBIAN/"
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
}

mkdir -p "$doc" "$work/wheels"
build_own_wheel
install_wheels
tidy
add_files
add_control
find "$tree" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$output"
package=$output/stoker_${version}_$arch.deb
dpkg-deb --root-owner-group "${compression[@]}" --build "$tree" "$package" >/dev/null
printf '%s\n' "$package"
