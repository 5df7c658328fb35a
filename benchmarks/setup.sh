#!/bin/sh
# Makes .benchmark-env/: the programs that we are measured against, never in .venv.
# Doing it again is quick; `make clean` removes it.
set -eu
cd "$(dirname "$0")/.."
env=.benchmark-env
python=.venv/bin/python
[ -x "$python" ] || { echo "run \`make setup\` first" >&2; exit 1; }
[ -x "$env/bin/python" ] || "$python" -m venv "$env"
wanted='ansible-core>=2.17 parallel-ssh>=2.12 aiosqlite>=0.21 SQLAlchemy>=2.1 paho-mqtt>=2.2 asyncssh>=2.24'
if ! [ "$(cat "$env/.installed" 2>/dev/null)" = "$wanted" ]; then
  # shellcheck disable=SC2086 - one word each
  timeout 600 "$env/bin/python" -m pip install --quiet --disable-pip-version-check $wanted
  echo "$wanted" >"$env/.installed"
fi
