#!/usr/bin/env bash
# kernel.sh DIR FLAVOUR: unpacks Debian's kernel (cloud-amd64, amd64, cloud-arm64) into
# DIR, with a busybox of its architecture, and makes DIR/initrd, which holds just
# the drivers of the disk. Does nothing if DIR has that kernel already.
set -euo pipefail
dir=$(realpath -m "$1") flavour=$2
here=$(cd "$(dirname "$0")" && pwd)

sudo=sudo
if [ "$(id -u)" -eq 0 ]; then sudo=; fi
arch=${flavour##*-}
# Packages of another architecture than the host's have lists of their own.
apt=()
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
	mkdir -p "$dir.apt"/{lists/partial,cache/archives/partial}
	apt=(-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "Dir::State::lists=$dir.apt/lists" -o "Dir::Cache=$dir.apt/cache")
	sudo=
fi

newest() { apt-cache "${apt[@]}" depends "linux-image-$flavour" 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }' || true; }
download() { [ -n "$package" ] && (cd "$dir" && apt-get "${apt[@]}" download -q "$package" busybox-static >/dev/null); }

package=$(newest)
if [ -z "$package" ] || [ "$(cat "$dir/package" 2>/dev/null)" != "$package" ] || [ ! -s "$dir/busybox" ]; then
	rm -rf "$dir"
	mkdir -p "$dir/root"
	# The lists may be missing, or older than what the mirror has.
	if ! download; then
		$sudo apt-get "${apt[@]}" update -qq
		package=$(newest)
		download || { echo "vm: no package of Debian's kernel linux-image-$flavour" >&2; exit 1; }
	fi
	dpkg-deb -x "$dir/$package"_*.deb "$dir/root"
	dpkg-deb --fsys-tarfile "$dir"/busybox-static_*.deb | tar -xO ./bin/busybox >"$dir/busybox"
	rm "$dir"/*.deb
	# The directories of a merged /usr, as a Debian root has them.
	mkdir -p "$dir/root/usr/lib"
	[ -d "$dir/root/usr/lib/modules" ] || mv "$dir/root/lib/modules" "$dir/root/usr/lib/modules"
	rm -rf "$dir/root/lib"
	ln -s usr/lib "$dir/root/lib"
	version=$(basename "$dir"/root/usr/lib/modules/*)
	depmod -b "$dir/root" "$version"
	cp "$dir/root/boot/vmlinuz-$version" "$dir/vmlinuz"
	echo "$version" >"$dir/version"
fi

version=$(cat "$dir/version")
modules=$dir/root/usr/lib/modules/$version
initrd=$dir/initrd.d
rm -rf "$initrd"
mkdir -p "$initrd"/{bin,dev,proc,sys,root,modules}
install -m 755 "$dir/busybox" "$initrd/bin/busybox"
install -m 755 "$here/init" "$initrd/init"
# Dependencies stand before what needs them; what is built in has no file.
for module in virtio_pci virtio_blk ext4; do
	modprobe -d "$dir/root" -S "$version" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
	cp "$file" "$initrd/modules/"
	basename "$file"
done >"$initrd/modules/order"
[ -d "$modules" ]
(cd "$initrd" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1 -n) >"$dir/initrd"
echo "$package" >"$dir/package"
