#!/usr/bin/env bash
# systemd.sh DIR KERNELDIR: lays out a root directory with Debian's systemd as first
# process and AppArmor, whose one service of ours runs the tests. The packages
# are laid out once.
set -euo pipefail
dir=$(realpath -m "$1") kernel=$(realpath "$2")
if [ ! -e "$dir/laid-out" ]; then
	rm -rf "$dir"
	mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,kmod,apparmor,busybox-static bookworm "$dir"
	touch "$dir/laid-out"
fi
rm -rf "$dir/tests" "$dir/out" "$dir/usr/lib/modules"
mkdir -p "$dir/tests" "$dir/out"
cp -a "$kernel/root/usr/lib/modules" "$dir/usr/lib/"
echo '/dev/vda / ext4 defaults 0 1' >"$dir/etc/fstab"
echo vm >"$dir/etc/hostname"
echo uninitialized >"$dir/etc/machine-id"
printf '%s\n' overlay bridge veth nf_tables nft_chain_nat nft_masq br_netfilter >"$dir/etc/modules-load.d/tests.conf"
units=$dir/etc/systemd/system
cat >"$units/tests.service" <<'U'
[Unit]
Description=run the tests and switch off
After=basic.target apparmor.service
[Service]
Type=oneshot
Delegate=yes
TimeoutStartSec=infinity
ExecStart=/bin/sh -c 'echo "vm: ready, $$(cat /proc/1/comm), AppArmor: $$(cat /sys/module/apparmor/parameters/enabled)"; /tests/run-tests; sync; systemctl --no-block poweroff -ff'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
U
mkdir -p "$units/multi-user.target.wants"
ln -sf ../tests.service "$units/multi-user.target.wants/tests.service"
# What costs time under emulation, and nothing here needs. /tmp stays on the
# disk: before 6.3 a tmpfs cannot be mounted with ids mapped.
for unit in systemd-timesyncd.service systemd-networkd.service systemd-resolved.service systemd-udevd.service systemd-udev-trigger.service \
	getty@tty1.service serial-getty@ttyS0.service console-getty.service apt-daily.timer apt-daily-upgrade.timer \
	systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service tmp.mount; do
	ln -sf /dev/null "$units/$unit"
done
