# Sourced by contrib/quickstart and tests/run: brings what the distribution lacks, quietly.
# shellcheck shell=bash

say() { printf '\n\033[1m%s\033[0m\n' "$*" | { [ -t 1 ] && cat || sed 's/\x1b\[[0-9]*m//g'; }; }

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# The distribution's Python: its bindings for libvirt and systemd are built for that one.
system_python() {
  local python=/usr/bin/python3
  [ -x "$python" ] || fail "there is no $python; vcpusched needs Python 3.11 or newer"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "vcpusched needs Python 3.11 or newer; $python is $("$python" -V 2>&1)"
  printf '%s\n' "$python"
}

# Any Python that is new enough, for what needs no bindings.
quick_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    python=$(command -v "$python") || continue
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$python"
      return
    fi
  done
  fail "there is no Python 3.11 or newer"
}

# requirements PYTHON EXTRA...: what pyproject.toml in $top asks for, for the extras too, a line each.
# PyPI has the bindings of libvirt and systemd as sources only, which take a compiler and headers to
# build: those come with the distribution where they are needed.
requirements() {
  "$1" - "$top/pyproject.toml" "${@:2}" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
needed = [*project["dependencies"], *(one for name in sys.argv[2:] for one in extras[name])]
print(*(one for one in needed if not one.startswith(("libvirt", "systemd", "vcpusched"))), sep="\n")
PYTHON
}

# bring_packages LOG PACKAGE-OF-DEBIAN=PACKAGE-OF-FEDORA ... : installs those that are missing.
bring_packages() {
  local log=$1 pair missing=()
  shift
  if command -v apt-get >/dev/null; then
    for pair in "$@"; do
      [ -n "${pair%%=*}" ] || continue
      dpkg-query -W -f '${db:Status-Status}' "${pair%%=*}" 2>/dev/null | grep -qx installed ||
        missing+=("${pair%%=*}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    announce_packages "${missing[@]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } \
      >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; fail "apt-get could not install them"; }
  elif command -v dnf >/dev/null; then
    for pair in "$@"; do
      [ -n "${pair#*=}" ] || continue
      rpm -q "${pair#*=}" >/dev/null 2>&1 || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    announce_packages "${missing[@]}"
    dnf install -y --setopt=install_weak_deps=False "${missing[@]}" \
      >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; fail "dnf could not install them"; }
  else
    fail "neither apt-get nor dnf is here; install by hand: ${*//=*/}"
  fi
}

announce_packages() {
  [ "$(id -u)" = 0 ] || fail "these packages are missing, and only root can install them: $*"
  say "Installing: $*"
}

# What a private libvirt with emulated guests needs, and the bindings of the system's Python.
LAB_PACKAGES=(
  python3-venv=python3
  python3-libvirt=python3-libvirt
  python3-systemd=python3-systemd
  libvirt-daemon=libvirt-daemon-common
  libvirt-daemon-driver-qemu=libvirt-daemon-driver-qemu
  qemu-system-x86=qemu-system-x86-core
  binutils=binutils
  util-linux=util-linux
)
