#!/usr/bin/env bash
# root.sh DIR KERNELDIR: lays out a root directory for a machine without systemd:
# busybox and the kernel's modules.
set -euo pipefail
dir=$(realpath -m "$1") kernel=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$dir"
mkdir -p "$dir"/{dev,proc,sys,run,tmp,root,var/lib,var/tmp,etc,out,tests,usr/bin,usr/sbin,usr/lib}
chmod 1777 "$dir/tmp"
for sub in bin sbin lib; do ln -s "usr/$sub" "$dir/$sub"; done
install -m 755 "$kernel/busybox" "$dir/usr/bin/busybox"
for applet in $(busybox --list); do # the host's, which can run it
	[ "$applet" = busybox ] || ln -s /usr/bin/busybox "$dir/usr/bin/$applet"
done
ln -s /usr/bin/busybox "$dir/usr/sbin/modprobe" # where the kernel looks for it
cp -a "$kernel/root/usr/lib/modules" "$dir/usr/lib/"
echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false' >"$dir/etc/passwd"
echo 'root:x:0:
nogroup:x:65534:' >"$dir/etc/group"
echo '127.0.0.1 localhost vm' >"$dir/etc/hosts"
: >"$dir/etc/resolv.conf"
install -m 755 "$here/machine" "$dir/usr/sbin/machine"
