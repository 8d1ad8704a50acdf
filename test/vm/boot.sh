#!/usr/bin/env bash
# boot.sh KERNELDIR ROOTDIR OUTDIR START: makes a disk of ROOTDIR, boots it with
# START as its first process, and leaves in OUTDIR what the machine put into
# /out. The machine's console goes to OUTDIR/console, lines that begin with
# "vm:" to stdout. Environment: MEMORY (MiB), DEADLINE (seconds), APPEND (more
# of the kernel's command line), KVM (any value: not emulated).
set -euo pipefail
kernel=$1 root=$2 out=$3 start=$4
rm -rf "$out"
mkdir -p "$out"
disk=$out/disk.ext4
trap 'rm -f "$disk"' EXIT
size=$(($(du -sm "$root" | cut -f1) * 5 / 4 + 1024))
mke2fs -q -F -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$root" "$disk" "${size}M" >/dev/null

accel=(-accel "tcg,thread=multi,tb-size=512" -cpu max,la57=off)
# A nested /dev/kvm may be there and not work, so it is used on demand alone.
if [ -n "${KVM:-}" ]; then accel=(-accel kvm -cpu host); fi
timeout "${DEADLINE:-3000}" qemu-system-x86_64 "${accel[@]}" -M q35 -m "${MEMORY:-2048}" -smp 2 \
	-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
	-append "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on start=$start ${APPEND:-}" \
	-drive "file=$disk,format=raw,if=virtio,cache=unsafe" \
	-nodefaults -no-user-config -nic none -display none -no-reboot -serial stdio </dev/null |
	tee "$out/console" | sed -un 's/\r$//; /^vm:/p' || true
debugfs -R "rdump /out $out" "$disk" >/dev/null 2>&1
find "$out/out" -type f -exec mv -t "$out" {} +
rmdir "$out/out"
