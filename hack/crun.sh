#!/usr/bin/env bash
# Fetches a newer Debian's crun with the libraries that it was built with, which
# this machine may be too old for: hack/crun.sh SUITE DIR. DIR/crun then runs
# here. The packages are those of the suite as its signed lists have them.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
hack/need.sh patchelf:patchelf
mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
: >"$dir/status" # nothing is installed there
# From where this machine's own main packages come.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(CODENAME)' 'Created-By: Packages' |
	awk '$2 == "main" && $3 !~ /-/ {print $1; exit}')
cat >"$dir/sources.list" <<END
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main
END
options=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$dir/lists"
	-o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
apt-get "${options[@]}" -qq update
apt-get "${options[@]}" -qq --yes --no-install-recommends --download-only install crun
for package in "$dir"/cache/archives/*.deb; do dpkg -x "$package" "$dir/root"; done
rm -rf "$dir/cache" "$dir/lists"
crun=$dir/root/usr/bin/crun
loader=$(patchelf --print-interpreter "$crun")
patchelf --force-rpath --set-interpreter "$dir/root/usr$loader" --set-rpath "$(echo "$dir"/root/usr/lib/*-linux-gnu)" "$crun"
ln -sf root/usr/bin/crun "$dir/crun"
"$dir/crun" --version | head -n 1
