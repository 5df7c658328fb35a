#!/bin/sh
# Runs the benchmarks, or the one that is named; each prints a table and a JSON line.
#   sh benchmarks/run.sh [NAME]      QUICK=1: a smoke run of some minutes
set -u
cd "$(dirname "$0")/.."
sh benchmarks/setup.sh || { echo "the benchmarks' environment could not be made" >&2; exit 1; }
python=.benchmark-env/bin/python
PYTHONPATH=agents/sim${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
limit_s=3600
[ "${QUICK:-0}" = 1 ] && limit_s=300
failed=
for name in ${1:-startup store_writes queue mqtt_publish reports flood ssh_fanout soak}; do
  echo "## $name"
  timeout "$limit_s" "$python" -m "benchmarks.$name" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
