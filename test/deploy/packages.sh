#!/bin/sh
# Makes the package of this checkout, and the same again under a higher version, in .cache/deb/test/old and new. Both are
# quick to make, and larger than what `npm run package:deb` makes.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
cd "$root"
node() { deploy/bin/node "$@"; }
version=$(node -p 'require("./package.json").version')
rm -rf .cache/deb/test
node deploy/package/build.ts
for name in old new; do
  mkdir -p ".cache/deb/test/$name"
  [ "$name" = old ] && release=$version-1 || release=$version-2
  node deploy/package/deb.ts --arch "$(dpkg --print-architecture)" --version "$release" --compression zstd \
    --to ".cache/deb/test/$name" >&2
done
