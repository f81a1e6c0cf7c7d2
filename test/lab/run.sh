#!/bin/sh
# Runs the lab: a guest with an SR-IOV NIC, the agent and its tests inside. Its exit status is theirs.
set -eu
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$(dirname "$here")")
lab=$(sh "$here/prepare.sh")
output=$(mktemp)
trap 'rm -f "$output"' EXIT INT TERM
timeout 900 "$lab/qemu/usr/bin/qemu-system-x86_64" \
  -L "$lab/qemu/usr/share/qemu" -L /usr/share/seabios -L /usr/share/qemu \
  -accel tcg,thread=multi -cpu max -smp 2 -M q35 -m 1536 \
  -nographic -nodefaults -no-reboot -serial stdio -monitor none \
  -device intel-iommu \
  -device pcie-root-port,id=rp0,slot=1 \
  -netdev hubport,hubid=1,id=n0 -device igb,bus=rp0,netdev=n0,romfile= \
  -virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
  -kernel "$lab/vmlinuz" -initrd "$lab/initrd" \
  -append "console=ttyS0 quiet rdinit=/init reboot=t panic=-1 intel_iommu=on volt.root=$root" </dev/null | tee "$output"
status=$(sed -n "s/.*LAB EXIT \([0-9]*\).*/\1/p" "$output" | tail -n 1)
if [ -z "$status" ]; then
  echo 'lab: the guest ended without a result' >&2
  exit 1
fi
exit "$status"
