#!/bin/sh
# Makes the package of this checkout, and the same again under a higher version, in .cache/deb/test/old and new; that for
# the other machine type in other. They are quick to make, and larger than what `npm run package:deb` makes. Fails where
# the same is not the same bytes twice.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
cd "$root"
node() { deploy/bin/node "$@"; }
version=$(node -p 'require("./package.json").version')
made=.cache/deb/test
rm -rf "$made"
mkdir -p "$made/old" "$made/new" "$made/again" "$made/other"
own=$(dpkg --print-architecture)
case $own in amd64) other=arm64 ;; *) other=amd64 ;; esac
node deploy/package/build.ts
make() {
  node deploy/package/deb.ts --arch "$3" --version "$version-$1" --compression zstd --to "$made/$2" >&2
}
make 1 old "$own"
make 2 new "$own"
make 1 other "$other"
# The same commit gives the same bytes, whoever makes it and where.
(umask 077 && TMPDIR=$(mktemp -d) && export TMPDIR TZ=Asia/Tokyo && make 1 again "$own" && rm -r "$TMPDIR")
cmp "$made"/old/*.deb "$made"/again/*.deb
rm -r "$made/again"
