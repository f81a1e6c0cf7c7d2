#!/bin/sh
# Unpacks Debian's package cloud-init, and the libraries that it imports, into .cache/cloud-init and prints that folder: a test
# asks it what it makes of a network-config. It is not installed: it would configure this machine at its next boot.
# Safe to run twice at once.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
ready=$root/.cache/cloud-init
packages='cloud-init python3-configobj python3-json-pointer python3-jsonpatch python3-jsonschema python3-jinja2
  python3-markupsafe python3-netifaces python3-oauthlib python3-pyrsistent python3-attr python3-requests python3-urllib3
  python3-idna python3-certifi python3-chardet python3-charset-normalizer python3-serial python3-six python3-yaml'
if [ ! -e "$ready/usr/bin/cloud-init" ]; then
  mkdir -p "$root/.cache"
  work=$(mktemp -d "$root/.cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT INT TERM
  cd "$work"
  # shellcheck disable=SC2086 # a list of words
  apt-get download -qq $packages >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq $packages >/dev/null; }
  for deb in *.deb; do dpkg -x "$deb" cloud-init; done
  # Whoever was first wins.
  mv -T cloud-init "$ready" 2>/dev/null || [ -e "$ready/usr/bin/cloud-init" ]
fi
echo "$ready"
