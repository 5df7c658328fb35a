#!/bin/sh
# Makes .venv from requirements.lock and installs the programs that the tests and the demo run.
#
# Safe to repeat: what is there already is left alone (the second run takes under a second).
# PYTHON=/path/to/python3.12 chooses the interpreter, IOTJOBS_SKIP_SYSTEM=1 leaves the system alone.
# Where packages come from is pip's and apt's own configuration; nothing here names an index.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$here")
venv=$root/.venv

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

# --- system programs -------------------------------------------------------------------------

have() { PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin command -v "$1" >/dev/null 2>&1; }

have_postgres() {
  have initdb && return 0
  for program in /usr/lib/postgresql/*/bin/initdb; do
    [ -x "$program" ] && return 0
  done
  return 1
}

missing_packages() {
  have mosquitto || echo mosquitto
  have mosquitto_pub || echo mosquitto-clients
  have sshd || echo openssh-server
  have dropbear || echo dropbear-bin
  have busybox || echo busybox
  have sudo || echo sudo
  have_postgres || echo postgresql
  have faketime || echo faketime
  have strace || echo strace
  have ip || echo iproute2
  have chromium || echo chromium
}

# Runs as root. The tests start these programs themselves, on ports of their own: a package's own
# service is neither started now (policy-rc.d) nor at the next boot (disable), so that setting up a
# checkout never opens a port on somebody's machine.
install_packages() {
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -q -y --no-install-recommends "$@"
  command -v systemctl >/dev/null 2>&1 || return 0
  for package in "$@"; do
    case $package in
      mosquitto | postgresql) systemctl disable "$package" ;;
      openssh-server) systemctl disable ssh ;;
    esac >/dev/null 2>&1 || true
  done
}

add_packages() {
  line="apt-get install $*"
  if ! command -v apt-get >/dev/null 2>&1; then
    say "not found here (Debian names): $*" "install them with your package manager"
  elif [ "$(id -u)" = 0 ]; then
    say "$line"
    sh "$0" --install-packages "$@" </dev/null || say "that failed; tests that need them say so. Later: $line"
  elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    say "sudo $line"
    sudo -n sh "$0" --install-packages "$@" </dev/null || say "that failed; tests that need them say so. Later: sudo $line"
  else
    say "not installed: $*; what needs them is skipped until you run: sudo $line"
  fi
}

# --- python ----------------------------------------------------------------------------------

is_fit() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  for name in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3}; do
    if is_fit "$name"; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

venv_package() { "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'; }

sum_of() { cat "$@" | sha256sum | cut -d ' ' -f 1; }

# Does "$2…" unless stamp $1 says that it was done for this content.
once() {
  stamp=$venv/.stamp-$1
  content=$2
  shift 2
  if [ "$(cat "$stamp" 2>/dev/null)" != "$content" ]; then
    "$@"
    printf '%s\n' "$content" >"$stamp"
  fi
}

pip_install() { "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --quiet "$@"; }

install_locked() {
  say "installing requirements.lock into .venv"
  pip_install --require-hashes -r "$root/requirements.lock"
}

# After the lock and without its hashes: pip refuses an editable project beside hashes.
install_project() {
  say "installing the project itself (editable)"
  pip_install --no-deps --editable "$root"
}

# A venv holds full paths: one that was moved or copied with its folder is no good.
was_made_here() { ! grep -q '^command = ' "$venv/pyvenv.cfg" || grep -q "^command = .* $venv\$" "$venv/pyvenv.cfg"; }

make_venv() {
  # Behind a link is another checkout's: to clear it, or to install this project there, would break that one.
  if [ -L "$venv" ]; then
    fail ".venv is a link to $(readlink "$venv"), which belongs to another checkout; nothing was changed." \
      "Use its programs as they are (.venv/bin/python -m pytest), or remove the link and run: make setup"
  fi
  is_fit "$venv/bin/python" && was_made_here && return 0
  python=$(find_python) || fail \
    "Python 3.11 or newer is needed and was not found (tried: ${PYTHON:-python3, python3.11 … python3.14})." \
    "Debian 12 and Ubuntu 24.04: sudo apt-get install python3 python3-venv; else PYTHON=/path/to/python make setup"
  if ! can_make_venv "$python"; then
    add_packages "$(venv_package "$python")"
    can_make_venv "$python" || fail \
      "$python has no venv module. Run: sudo apt-get install $(venv_package "$python")" \
      "and then again: make setup"
  fi
  say "making .venv with $python"
  "$python" -m venv --clear "$venv"
}

# --- all of it -------------------------------------------------------------------------------

if [ "${1-}" = --install-packages ]; then
  shift
  install_packages "$@"
  exit 0
fi

make_venv
once lock "$(sum_of "$root/requirements.lock")" install_locked
once project "$root $(sum_of "$root/pyproject.toml")" install_project

if [ -z "${IOTJOBS_SKIP_SYSTEM-}" ]; then
  packages=$(missing_packages)
  # shellcheck disable=SC2086  # a list of names
  [ -z "$packages" ] || add_packages $packages
fi
