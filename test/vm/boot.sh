#!/usr/bin/env bash
# boot.sh KERNELDIR ROOTDIR OUTDIR START: makes a disk of ROOTDIR, boots it with
# START as its first process, and leaves in OUTDIR what the machine put into
# /out. The machine's console goes to OUTDIR/console, lines that begin with
# "vm:" to stdout. Environment: MEMORY (MiB), DEADLINE (seconds), APPEND (more
# of the kernel's command line), KVM (any value: not emulated), GOARCH (amd64 or
# arm64).
# A machine that says not "vm: ready" within READY seconds is shown and started
# anew, twice: now and then an emulated processor does not get through its boot.
set -euo pipefail
kernel=$1 root=$2 out=$3 start=$4
rm -rf "$out"
mkdir -p "$out"
disk=$out/disk.ext4 booted=
trap 'rm -f "$disk"; [ -z "$booted" ] || kill "$booted" 2>/dev/null || true' EXIT
size=$(($(du -sm "$root" | cut -f1) * 5 / 4 + 1024))

emulator=qemu-system-x86_64 machine=q35 cpu=max,la57=off tty=ttyS0
if [ "${GOARCH:-amd64}" = arm64 ]; then
	emulator=qemu-system-aarch64 machine=virt cpu=max,pauth=off tty=ttyAMA0
fi
accel=(-accel "tcg,thread=multi,tb-size=512" -cpu "$cpu")
# A nested /dev/kvm may be there and not work, so it is used on demand alone.
if [ -n "${KVM:-}" ]; then accel=(-accel kvm -cpu host); fi

# console: what the machine says, from its first line on, until it is off.
console() { tail -n +1 -f --pid="$booted" "$out/console" 2>/dev/null; }
ready() { timeout "${READY:-300}" grep -qm1 '^vm: ready' < <(console); }

# boot QUIET: 0 when the machine has run to its end.
boot() {
	rm -f "$disk"
	mke2fs -q -F -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$root" "$disk" "${size}M" >/dev/null
	: >"$out/console"
	timeout "${DEADLINE:-3000}" "$emulator" "${accel[@]}" -M "$machine" -m "${MEMORY:-2048}" -smp 2 \
		-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
		-append "console=$tty $1 panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on start=$start ${APPEND:-}" \
		-drive "file=$disk,format=raw,if=virtio,cache=unsafe" \
		-nodefaults -no-user-config -nic none -display none -no-reboot -serial stdio </dev/null >"$out/console" &
	booted=$!
	if ! ready; then
		kill "$booted" 2>/dev/null || true
		wait "$booted" || true
		echo "the machine did not get ready; its last words:" >&2
		tail -n 30 "$out/console" >&2
		return 1
	fi
	console | sed -un 's/\r$//; /^vm:/p' # until it is off
	wait "$booted" || true              # what it left on its disk tells
}
boot quiet || boot debug || boot debug
booted=
debugfs -R "rdump /out $out" "$disk" >/dev/null 2>&1
find "$out/out" -type f -exec mv -t "$out" {} +
rmdir "$out/out"
