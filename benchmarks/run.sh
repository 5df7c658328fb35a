#!/bin/sh
# Runs the benchmarks, or the one that is named; each prints a table and a JSON line.
#   sh benchmarks/run.sh [NAME]      QUICK=1: a smoke run of some minutes
set -u
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || { echo "run \`make setup\` first" >&2; exit 1; }
PYTHONPATH=agents/sim${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
limit_s=3600
[ "${QUICK:-0}" = 1 ] && limit_s=300
failed=
for name in ${1:-startup store_writes mqtt_publish ssh_fanout}; do
  if [ "$name" = ssh_fanout ] || [ "$name" = store_writes ]; then
    sh benchmarks/setup.sh || echo "the peers could not be installed: they are left out" >&2
  fi
  echo "## $name"
  timeout "$limit_s" "$python" -m "benchmarks.$name" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
