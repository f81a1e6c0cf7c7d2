#!/bin/sh
# Holds the namespaces in which podman.ts runs podman: of processes, so that SIGKILL ends containers, too, and of mounts, with
# an /etc and a /var/lib of its own. Network and /run are the caller's, who is in a control group of its own already.
# $1: a folder on a tmpfs.
set -eu
folder=$1
if [ "${2:-}" != inside ]; then
  exec unshare --pid --fork --kill-child --mount --propagation unchanged --cgroup sh "$0" "$folder" inside
fi
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
for place in etc var/lib; do
  mkdir -p "$folder/$place/upper" "$folder/$place/work"
  mount -t overlay -o "lowerdir=/$place,upperdir=$folder/$place/upper,workdir=$folder/$place/work" overlay "/$place"
done
: >"$folder/ready"
# A shell that waits also waits for the processes that lose their parent.
sleep infinity &
wait
