#!/bin/sh
# Prepares the lab: QEMU with an igb NIC (8 or later; Debian 12 has 10 in its backports) and Debian's kernel with
# igb, igbvf and vfio-pci, both unpacked and not installed, and an initramfs of busybox and modules. Kept in
# .cache/lab/<recipe>/; safe to run twice at once. Prints the folder.
set -eu
here=$(dirname "$(readlink -f "$0")")
cache=$(dirname "$(dirname "$here")")/.cache/lab
if [ "$(uname -m)" != x86_64 ]; then
  echo "lab: no lab for $(uname -m)" >&2
  exit 69
fi
mkdir -p "$cache"

recipe=$(cat "$here/prepare.sh" "$here/init" /bin/busybox | sha256sum | cut -c1-12)
ready=$cache/$recipe
if [ -e "$ready/initrd" ]; then
  echo "$ready"
  exit 0
fi

work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
mkdir -p "$work/apt/lists" "$work/apt/archives/partial" "$work/download" "$work/ready/qemu" "$work/kernel" "$work/root"

# The mirror is the machine's own; its package lists are left alone.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sed -n 's/^\(.*\) bookworm$/\1/p' | head -n 1)
if [ -z "$mirror" ]; then
  echo 'lab: apt knows no source of Debian 12 (bookworm): add one to /etc/apt/sources.list.d and run apt-get update' >&2
  exit 69
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror bookworm-backports main" >"$work/apt/sources.list"
backports() {
  apt-get -qq -o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache::Archives="$work/apt/archives" \
    -o Dir::Cache::PkgCache="$work/apt/packages.bin" -o Dir::Cache::SrcPkgCache="$work/apt/sources.bin" "$@"
}
echo 'lab: unpacking QEMU and a kernel' >&2
backports update
# As _apt where that is possible, apt warns; a folder that only root may enter is all the same.
(cd "$work/download" && backports download qemu-system-x86 qemu-system-common qemu-system-data >/dev/null 2>&1)
for package in "$work"/download/*.deb; do dpkg -x "$package" "$work/ready/qemu"; done
rm "$work"/download/*.deb

kernel_package() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1; }
[ -n "$(kernel_package)" ] || apt-get -qq update
(cd "$work/download" && { apt-get download -qq "$(kernel_package)" >/dev/null 2>&1 || { apt-get -qq update && apt-get download -qq "$(kernel_package)" >/dev/null; }; })
dpkg -x "$work"/download/*.deb "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$work/ready/vmlinuz"

version=$(basename "$work"/kernel/lib/modules/*)
modules=$work/root/lib/modules/$version
mkdir -p "$work/root/bin" "$work/root/sbin" "$modules"
cp /bin/busybox "$work/root/bin/busybox"
# Where the kernel looks when it wants a module by itself.
ln -s /bin/busybox "$work/root/sbin/modprobe"
cp "$here/init" "$work/root/init"
chmod 755 "$work/root/init"
for part in net drivers/net drivers/vfio drivers/virtio drivers/dca drivers/i2c/algos fs/9p fs/netfs fs/fscache lib crypto virt arch/x86/crypto; do
  source=$work/kernel/lib/modules/$version/kernel/$part
  [ -d "$source" ] || continue
  mkdir -p "$modules/kernel/$part"
  cp -r "$source/." "$modules/kernel/$part"
done
rm -rf "$modules/kernel/drivers/net/wireless" "$modules/kernel/net/mac80211" "$modules/kernel/net/bluetooth"
find "$modules/kernel/drivers/net/ethernet" -name '*.ko*' ! -name 'igb*' -delete
cp "$work/kernel/lib/modules/$version/"modules.* "$modules/"
/bin/busybox depmod -b "$work/root" "$version"
(cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0 | gzip -n -1) >"$work/ready/initrd"

# Whoever was first wins.
mv -T "$work/ready" "$ready" 2>/dev/null || [ -e "$ready/initrd" ]
echo "$ready"
