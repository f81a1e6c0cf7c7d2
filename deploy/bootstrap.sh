#!/bin/sh
# Installs what a command of this project needs and the machine lacks: Debian packages (as root) and npm
# packages. Quick when all is there. Usage: sh deploy/bootstrap.sh test|demo|vm|bench|run
set -eu
root=$(dirname "$(dirname "$(readlink -f "$0")")")
purpose=${1:-run}

say() { printf 'bootstrap: %s\n' "$*" >&2; }

has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

# need PROGRAM PACKAGE: the package is wanted when the program is missing.
packages=
need() { has "$1" || packages="$packages $2"; }
need_file() { [ -e "$1" ] || packages="$packages $2"; }

servers() {
  need nats-server nats-server
  need redis-server redis-server
  need ip iproute2
  need ping iputils-ping
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
    need setpriv util-linux
    need_file /usr/lib/python3/dist-packages/msgpack python3-msgpack
    ;;
  demo) servers ;;
  vm)
    servers
    guest
    ;;
  bench)
    servers
    need_file /usr/lib/cni/bridge containernetworking-plugins
    ;;
  run) ;;
  *)
    say "unknown purpose: $purpose"
    exit 64
    ;;
esac

# Servers that a package brings must not be started by its installation: the tests start their own.
policy=/usr/sbin/policy-rc.d
install_packages() {
  if [ "$(id -u)" -ne 0 ]; then
    say "missing:$packages; as root: apt-get install$packages"
    exit 77
  fi
  say "installing$packages"
  made_policy=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=1
    trap 'rm -f "$policy"' EXIT INT TERM
  fi
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # a list of words
  if ! apt-get install -qq -y --no-install-recommends $packages >/dev/null 2>&1; then
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $packages >/dev/null
  fi
  if [ -n "$made_policy" ]; then
    rm -f "$policy"
    trap - EXIT INT TERM
  fi
}
[ -z "$packages" ] || install_packages

stamp=$root/node_modules/.package-lock.json
if [ ! -e "$stamp" ] || [ "$root/package-lock.json" -nt "$stamp" ]; then
  say 'installing npm packages'
  (cd "$root" && npm ci --no-audit --no-fund --loglevel=error >&2)
  touch "$stamp"
fi

if [ "$purpose" = vm ] || [ "$purpose" = test ]; then
  sh "$root/deploy/guest/prepare.sh"
fi
