#!/bin/sh
# Make the Homebrew formula and the layout of the macOS package from this checkout.
#
#   installers/macos/build.sh --sha256 DIGEST [--output DIR]
#
# DIGEST is the SHA-256 of the release's source archive. The output holds stoker.rb, and pkg/ with
# payload/, scripts/, resources/ and distribution.xml. On a Mac, where pkgbuild and productbuild are,
# StokerSetup-VERSION.pkg is made of it, too (unsigned).
set -eu

fail() { printf 'build.sh: %s\n' "$1" >&2; exit 1; }

digest='' output=.
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 0 ;;
    --sha256 | --output)
        [ $# -ge 2 ] || fail "$1 needs a value"
        if [ "$1" = --sha256 ]; then digest=$2; else output=$2; fi
        shift
        ;;
    *) fail "there is no option $1; see --help" ;;
    esac
    shift
done
printf '%s' "$digest" | grep -Eqx '[0-9a-f]{64}' || fail "give the archive's digest with --sha256 DIGEST"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/daemon/stoker/__init__.py")
mkdir -p "$output"
fill() { sed -e "s/@VERSION@/$version/g" -e "s/@SHA256@/$digest/g" "$1"; }

fill "$here/stoker.rb.in" >"$output/stoker.rb"
pkg=$output/pkg
rm -rf "$pkg"
source_folder="$pkg/payload/Library/Application Support/Stoker/source"
mkdir -p "$source_folder/installers" "$pkg/scripts" "$pkg/resources"
(cd "$root" && find daemon tray service_files -name __pycache__ -prune -o -type f -print |
    tar -cf - -T - pyproject.toml README.md LICENSE) | tar -xf - -C "$source_folder"
for name in install.sh uninstall.sh requirements.lock build.lock; do
    cp -p "$root/installers/$name" "$source_folder/installers/"
done
chmod -R u=rwX,go=rX "$pkg"
cp "$here/pkg/postinstall" "$pkg/scripts/postinstall"
chmod 755 "$pkg/scripts/postinstall"
cp "$root/LICENSE" "$pkg/resources/"
fill "$here/pkg/distribution.xml.in" >"$pkg/distribution.xml"

if command -v pkgbuild >/dev/null && command -v productbuild >/dev/null; then
    pkgbuild --root "$pkg/payload" --scripts "$pkg/scripts" --identifier ai.stoker.pkg \
        --version "$version" "$pkg/stoker-component.pkg"
    productbuild --distribution "$pkg/distribution.xml" --resources "$pkg/resources" \
        --package-path "$pkg" "$output/StokerSetup-$version.pkg"
fi
printf '%s\n' "$output/stoker.rb" "$pkg"
