#!/usr/bin/env bash
# As hack/test-v2.sh, on a machine with systemd as its first process and
# AppArmor. Needs root to lay out Debian's packages; too long for every change.
# The last line counts: "vm: P passed, F failed, S skipped".
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=PATH,PACKAGES,ARGS,KVM "$0" "$@"
fi
hack/need.sh qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs cpio:cpio modprobe:kmod busybox:busybox-static mmdebstrap:mmdebstrap
vm=bin/vm
test/vm/kernel.sh "$vm/kernel" cloud-amd64
test/vm/tests.sh "$vm/tests"
test/vm/systemd.sh "$vm/systemd" "$vm/kernel"
cp -al "$vm/tests/." "$vm/systemd/tests/"
APPEND='systemd.show_status=0 systemd.log_level=warning systemd.unified_cgroup_hierarchy=1 apparmor=1 security=apparmor' \
	test/vm/boot.sh "$vm/kernel" "$vm/systemd" "$vm/out-systemd" /sbin/init
exec test/vm/summary.sh "$vm/out-systemd" "$vm/tests/list"
