#!/bin/sh
# Makes .benchmark-env/: iotjobs as it is deployed, and the programs that it is measured against.
# One Python for all of them, by preference the system's: others are often built without optimisation.
# Doing it again is quick; `make clean` removes it.
set -eu
cd "$(dirname "$0")/.."
env=.benchmark-env
if ! [ -x "$env/bin/python" ]; then
  for python in ${PYTHON:-/usr/bin/python3 .venv/bin/python}; do
    "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
  done
  "$python" -m venv "$env"
fi
wanted='ansible-core>=2.17 parallel-ssh>=2.12 aiosqlite>=0.21 procrastinate>=3.10 psycopg[binary,pool]>=3.2'
installed="$wanted $(cksum <pyproject.toml)"
if ! [ "$(cat "$env/.installed" 2>/dev/null)" = "$installed" ]; then
  # shellcheck disable=SC2086 - one word each
  timeout 900 "$env/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[fast,postgres]' $wanted
  echo "$installed" >"$env/.installed"
fi
# Node-RED 4 runs on Node.js 18.5 and later; 5 asks for 22.9.
node_red='node-red@4'
if command -v npm >/dev/null && ! [ "$(cat "$env/.node-red" 2>/dev/null)" = "$node_red" ]; then
  timeout 900 npm install --silent --no-audit --no-fund --prefix "$env/node" "$node_red" && echo "$node_red" >"$env/.node-red"
fi
