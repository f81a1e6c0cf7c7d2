#!/bin/sh
# Prepares a guest for QEMU: Debian's cloud kernel, unpacked and not installed, and an initramfs of busybox,
# klibc's ipconfig and the modules of a virtio NIC. Kept in .cache/guest/<kernel>-<recipe>/, made anew when either changes;
# safe to run twice at once. Prints the folder, which holds `vmlinuz` and `initrd`.
set -eu
here=$(dirname "$(readlink -f "$0")")
cache=$(dirname "$(dirname "$here")")/.cache/guest
machine=$(uname -m)
if [ "$machine" != x86_64 ]; then
  echo "guest: no guest for $machine" >&2
  exit 69
fi
mkdir -p "$cache"

# The recipe is this script and what it packs; a guest of this recipe is used without asking apt.
recipe=$(cat "$here/prepare.sh" "$here/init" "$here/udhcpc" /bin/busybox | sha256sum | cut -c1-12)
ready=$cache/$recipe
if [ -e "$ready/initrd" ] && [ -e "$ready/vmlinuz" ]; then
  echo "$ready"
  exit 0
fi

meta=linux-image-cloud-amd64
package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
if [ -z "$package" ]; then
  apt-get update -qq
  package=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
fi
echo "guest: unpacking $package" >&2
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
mkdir "$work/download" "$work/kernel" "$work/root" "$work/ready"
# As _apt where that is possible, apt warns; a folder that only root may enter is all the same.
(cd "$work/download" && { apt-get download -qq "$package" >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq "$package" >/dev/null; }; })
dpkg -x "$work"/download/*.deb "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$work/ready/vmlinuz"
# Debian's initramfs configures the NIC of `ip=` with klibc's ipconfig.
(cd "$work/download" && apt-get download -qq klibc-utils libklibc >/dev/null 2>&1)
for deb in "$work"/download/*klibc*.deb; do dpkg -x "$deb" "$work/klibc"; done

mkdir "$work/root/bin" "$work/root/modules"
cp /bin/busybox "$work/root/bin/busybox"
cp "$here/init" "$here/udhcpc" "$work/root/"
mkdir -p "$work/root/lib"
cp "$work"/klibc/usr/lib/klibc/bin/ipconfig "$work/root/bin/"
find "$work/klibc" -name 'klibc-*.so' -exec cp {} "$work/root/lib/" \;
chmod 755 "$work/root/init" "$work/root/udhcpc"
modules=$(dirname "$(find "$work/kernel" -name modules.dep -o -name modules.order | head -n 1)")
# In the order in which they need each other; what the kernel has built in is not there.
for name in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover af_packet virtio_net; do
  file=$(find "$modules" -name "$name.ko" -o -name "$name.ko.xz" | head -n 1)
  [ -n "$file" ] || continue
  case $file in
    *.xz) xz -dc "$file" >"$work/root/modules/$name.ko" ;;
    *) cp "$file" "$work/root/modules/$name.ko" ;;
  esac
  echo "$name.ko" >>"$work/root/modules/order"
done
(cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0 | gzip -n -1) >"$work/ready/initrd"

# Whoever was first wins.
mv -T "$work/ready" "$ready" 2>/dev/null || [ -e "$ready/initrd" ]
echo "$ready"
