#!/bin/sh
# Installs what a command of this project needs and the machine lacks: Debian packages (as root), npm packages
# and, for virtual machines, a guest. Quick when all is there.
# Usage: sh deploy/bootstrap.sh test|lab|package|demo|vm|bench|run
set -eu
root=$(dirname "$(dirname "$(readlink -f "$0")")")
purpose=${1:-run}
# Where the servers are, also for a caller that is not a login shell of root.
PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'bootstrap: %s\n' "$*" >&2; }

# A package is wanted when its program or file is missing.
packages=
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
need_file() { [ -e "$1" ] || packages="$packages $2"; }

servers() {
  need nats-server nats-server
  need redis-server redis-server
  need ip iproute2
  need ping iputils-ping
  need nft nftables
}

guest() {
  need qemu-system-x86_64 qemu-system-x86
  need busybox busybox-static
  need cpio cpio
  need xz xz-utils
}

case $purpose in
  test)
    servers
    guest
    need strace strace
    need jq jq
    need faketime faketime
    need dnsmasq dnsmasq-base
    need dhcp_release6 dnsmasq-utils
    need dhclient isc-dhcp-client
    need dig bind9-dnsutils
    need perfdhcp kea-admin
    need promtool prometheus
    need chromium chromium
    need_file /usr/lib/python3/dist-packages/msgpack python3-msgpack
    need go golang-go
    need_file /usr/share/gocode/src/github.com/nats-io/nats.go golang-github-nats-io-go-nats-dev
    need_file /usr/share/gocode/src/github.com/vmihailenco/msgpack/v5 golang-github-vmihailenco-msgpack.v5-dev
    need_file /lib/systemd/systemd-networkd systemd
    need dbus-daemon dbus
    need openssl openssl
    need curl curl
    need top procps
    ;;
  lab)
    servers
    guest
    ;;
  package)
    need ip iproute2
    need nft nftables
    need podman podman
    need runc runc
    need nats-server nats-server
    need redis-server redis-server
    need lintian lintian
    need_file /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
    ;;
  demo) servers ;;
  vm)
    servers
    guest
    ;;
  bench)
    servers
    need_file /usr/lib/cni/bridge containernetworking-plugins
    need_file /usr/lib/podman/netavark netavark
    need cc gcc
    need_file /usr/include/linux/if_tun.h linux-libc-dev
    need_file /usr/include/stdio.h libc6-dev
    ;;
  run) ;;
  *)
    say "unknown purpose: $purpose"
    exit 64
    ;;
esac

# The packages bring services, and Debian starts those it installs. Ours start their own servers, so that
# is forbidden for the time of the installation, in the way Debian provides (/usr/sbin/policy-rc.d), and
# what the machine had there is put back, however this ends.
policy=/usr/sbin/policy-rc.d
saved=
forbid_service_starts() {
  saved=$(mktemp -d)
  [ ! -e "$policy" ] || cp -p "$policy" "$saved/policy"
  trap restore_policy EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  printf '#!/bin/sh\nexit 101\n' >"$saved/forbid"
  chmod 755 "$saved/forbid"
  mv -f "$saved/forbid" "$policy"
}

restore_policy() {
  if [ -e "$saved/policy" ]; then mv -f "$saved/policy" "$policy"; else rm -f "$policy"; fi
  rm -rf "$saved"
  trap - EXIT INT TERM
}

# A machine that has just been started may be installing its updates: its lock is waited for.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null; }

install_packages() {
  if [ "$(id -u)" -ne 0 ]; then
    say "missing; as root: apt-get install$packages"
    exit 77
  fi
  say "installing$packages"
  forbid_service_starts
  # The first try fails where the package lists are missing or old; what it says would only confuse.
  # shellcheck disable=SC2086 # a list of words
  if ! apt install -y --no-install-recommends $packages 2>/dev/null; then
    say 'reading the package lists'
    apt update
    # shellcheck disable=SC2086
    apt install -y --no-install-recommends $packages
  fi
  restore_policy
}
[ -z "$packages" ] || install_packages

# npm notes here what it installed; development packages are wanted whatever NODE_ENV says.
installed=$root/node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ "$root/package-lock.json" -nt "$installed" ]; then
  say 'installing npm packages'
  (cd "$root" && npm ci --include=dev --include=optional --no-audit --no-fund --loglevel=error >&2)
  touch "$installed"
fi

case $purpose in
  vm | test) sh "$root/deploy/guest/prepare.sh" >/dev/null ;;
esac
case $purpose in
  test)
    sh "$root/test/support/udev.sh" >/dev/null
    sh "$root/test/support/cloud-init.sh" >/dev/null
    ;;
  package) sh "$root/test/support/debian-root.sh" >/dev/null ;;
esac
