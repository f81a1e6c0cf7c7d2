#!/bin/sh
# Unpacks Debian's package udev into .cache/udev and prints that folder: tests ask its `udevadm` which .link file
# applies. It is not installed: udevd would come with it and look after the devices of this machine.
# Safe to run twice at once.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
ready=$root/.cache/udev
if [ ! -e "$ready/bin/udevadm" ]; then
  mkdir -p "$root/.cache"
  work=$(mktemp -d "$root/.cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT INT TERM
  mkdir "$work/udev"
  cd "$work"
  apt-get download -qq udev >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq udev >/dev/null; }
  dpkg -x udev_*.deb udev
  # Whoever was first wins.
  mv -T udev "$ready" 2>/dev/null || [ -e "$ready/bin/udevadm" ]
fi
echo "$ready"
