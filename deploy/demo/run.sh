#!/bin/sh
# `npm run demo [-- --vm]`: installs what is missing, then plays the demo.
set -eu
here=$(dirname "$(readlink -f "$0")")
purpose=demo
for argument in "$@"; do
  [ "$argument" != --vm ] || purpose=vm
done
sh "$here/../bootstrap.sh" "$purpose"
exec "$here/../bin/node" "$here/demo.ts" "$@"
