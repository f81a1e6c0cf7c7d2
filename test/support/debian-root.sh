#!/bin/sh
# Makes a Debian 12 with systemd and without Node in .cache/debian/<recipe>/, and prints that folder. Its apt has what
# docs/install.md installs in its cache, since a test has no network. debootstrap is unpacked and not installed.
# Safe to run twice at once. As root.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
recipe=$(sha256sum "$0" | cut -c1-12)
ready=$root/.cache/debian/$recipe
if [ -e "$ready/etc/debian_version" ]; then
  echo "$ready"
  exit 0
fi
# The mirror is the machine's own.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sed -n 's/^\(.*\) bookworm$/\1/p' | head -n 1)
if [ -z "$mirror" ]; then
  echo 'debian-root: apt knows no source of Debian 12 (bookworm): add one to /etc/apt/sources.list.d and run apt-get update' >&2
  exit 69
fi
mkdir -p "$root/.cache/debian"
work=$(mktemp -d "$root/.cache/debian/work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
chmod 755 "$work"
cd "$work"
echo 'debian-root: installing Debian 12 into a folder' >&2
apt-get download -qq debootstrap >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq debootstrap >/dev/null; }
dpkg -x debootstrap_*.deb debootstrap
DEBOOTSTRAP_DIR=$work/debootstrap/usr/share/debootstrap sh debootstrap/usr/sbin/debootstrap --variant=minbase \
  --include=systemd,systemd-sysv,dbus,iproute2,iputils-ping bookworm root "$mirror" >debootstrap.log 2>&1 ||
  { cat debootstrap.log >&2 && exit 1; }
echo volt-test >root/etc/hostname
# apt asks nobody, and brings no kernel: that is the machine's.
printf '%s\n' 'APT::Get::Assume-Yes "true";' 'APT::Install-Recommends "false";' >root/etc/apt/apt.conf.d/90-test
rm root/var/cache/apt/archives/*.deb
env -i PATH="$PATH" chroot root apt-get -qq --download-only install nats-server redis-server libnftables1 netbase dnsmasq-base dnsmasq-utils udhcpc >download.log 2>&1 ||
  { cat download.log >&2 && exit 1; }
# Takes the place of systemd where that is not (debian-base.sh).
env -i PATH="$PATH" chroot root sh -c 'cd /var/cache/apt/archives && apt-get -qq download systemd-standalone-sysusers' >download.log 2>&1 ||
  { cat download.log >&2 && exit 1; }
# What these set is the machine's, not a namespace's.
for unit in systemd-sysctl systemd-modules-load systemd-binfmt; do
  ln -s /dev/null "root/etc/systemd/system/$unit.service"
done
# Whoever was first wins.
mv -T root "$ready" 2>/dev/null || [ -e "$ready/etc/debian_version" ]
echo "$ready"
