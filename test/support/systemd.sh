#!/bin/sh
# Becomes systemd, PID 1 of new namespaces of processes, mounts, control groups, host name and IPC, in the network
# namespace of the caller. $1: a folder on a tmpfs with etc/, bin/ and lib/, laid over /etc, /usr/bin and /var/lib.
# $2: this checkout, which is at /opt/volt-network there, as a package would be: units may have a /tmp and homes of their
# own, and it may be in either. Whoever runs this is in a control group of its own already. SIGKILL ends all of it.
set -eu
folder=$1
checkout=$2
if [ "${3:-}" != inside ]; then
  exec unshare --pid --fork --kill-child --mount --propagation unchanged --cgroup --uts --ipc \
    sh "$0" "$folder" "$checkout" inside
fi
mount -t proc -o nosuid,nodev,noexec proc /proc
over() { mount -t overlay -o "lowerdir=$1,upperdir=$folder/$2,workdir=$folder/$2.work" overlay "$1"; }
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$folder/opt"
mkdir "$folder/opt/volt-network"
mount --bind "$checkout" "$folder/opt/volt-network"
mount --rbind "$folder/opt" /opt
umount -R "$folder/opt"
over /etc etc
over /usr/bin bin
over /var/lib lib
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
: >"$folder/console"
mount --bind "$folder/console" /dev/console
# What systemd finds to say for itself goes to the console; of units there are those of the folder, and what is installed.
exec env -i PATH="$PATH" container=volt-test SYSTEMD_UNIT_PATH=/run/systemd/system:/etc/systemd/system \
  /lib/systemd/systemd --system --unit=stand.target --log-target=console --show-status=no
