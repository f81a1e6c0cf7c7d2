#!/bin/sh
# Becomes systemd, PID 1 of a Debian in namespaces of its own, in the network namespace of the caller. $1: the root of that
# Debian, which stays as it is. $2: a folder on a tmpfs with upper/, work/ and root/ for what is changed. $3: a folder that
# is /mnt there. Whoever runs this is in a control group of its own already. SIGKILL ends all of it.
set -eu
lower=$1
folder=$2
packages=$3
if [ "${4:-}" != inside ]; then
  exec unshare --pid --fork --kill-child --mount --propagation private --cgroup --uts --ipc \
    sh "$0" "$lower" "$folder" "$packages" inside
fi
new=$folder/root
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$new"
cd "$new"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o nosuid,mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mknod -m 666 dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs run
mount --bind "$packages" mnt
: >"$folder/console"
: >dev/console
mount --bind "$folder/console" dev/console
hostname volt-test
mkdir -p run/old
pivot_root . run/old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=volt-test \
  sh -c 'umount -l /run/old && rmdir /run/old && exec /lib/systemd/systemd --system --show-status=no --log-target=console'
