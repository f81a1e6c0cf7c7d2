#!/bin/sh
# The lab's tests, inside its guest.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TMPDIR=/tmp NO_COLOR=1
cd "$1" || exit 1
exec deploy/bin/node node_modules/vitest/vitest.mjs run --configLoader native --project lab --cache=false
