#!/bin/sh
# Writes the Debian 12 of debian-root.sh as a tar, without systemd, as base images have it, and with what it is missing then in
# its apt's cache. $1: a folder on a tmpfs. As root, in a mount namespace of the caller's.
set -eu
folder=$1
lower=$(sh "$(dirname "$0")/debian-root.sh")
mkdir -p "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"
env -i PATH="$PATH" chroot "$folder/root" dpkg --purge systemd-sysv systemd dbus >"$folder/purge.log" 2>&1 ||
  { cat "$folder/purge.log" >&2 && exit 1; }
# There is no network.
echo 'Acquire::Retries "0";' >"$folder/root/etc/apt/apt.conf.d/91-test"
tar -C "$folder/root" -c .
umount "$folder/root"
rm -r "$folder"
