#!/usr/bin/env bash
# Installs the packages of what is missing: hack/need.sh NEED:PACKAGE ...
# A NEED is the name of a program, or the absolute path of a file.
set -euo pipefail
packages=()
for need in "$@"; do
	case $need in
	/*) [ -e "${need%%:*}" ] ;;
	*) PATH=$PATH:/usr/sbin:/sbin command -v "${need%%:*}" >/dev/null ;;
	esac || packages+=("${need##*:}")
done
if [ "${#packages[@]}" -eq 0 ]; then exit; fi
sudo=sudo
if [ "$(id -u)" -eq 0 ]; then sudo=; fi
$sudo apt-get update -qq
# What else installs packages on a machine that has just started is waited for.
$sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${packages[@]}"
