#!/usr/bin/env bash
# selinux.sh DIR: adds to a root directory the policy that its machine loads.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
secilc -c 33 -o "$1/etc/selinux.policy" -f /dev/null "$here/selinux.cil"
