"""Ansible's `raw` module, a process a fan-out, with ControlPersist or (`BENCH_PERSIST=0`) without."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import fan_out

COMMAND = os.environ.get("BENCH_COMMAND", "true")
FORKS = os.environ.get("BENCH_FORKS", "20")
PERSIST = os.environ.get("BENCH_PERSIST", "1") == "1"
WITHIN_S = 600

fleet = fan_out.read_fleet()
folder = Path(sys.argv[1]).parent
inventory = folder / "inventory"
inventory.write_text(
    "".join(f"{device['host']} ansible_port={device['port']}\n" for device in fleet["devices"])
)
sockets = folder / "cp"  # short: a socket's path has at most 107 bytes
sockets.mkdir(exist_ok=True)
settings = folder / "ansible.cfg"  # empty: nothing of this machine's counts
settings.touch()
options = ["-o", f"UserKnownHostsFile={fleet['known_hosts_file']}", "-o", "IdentitiesOnly=yes"]
options += ["-o", "ControlMaster=auto", "-o", "ControlPersist=60s"] if PERSIST else ["-o", "ControlMaster=no"]
environment = os.environ | {
    "ANSIBLE_CONFIG": str(settings),
    "ANSIBLE_HOME": str(folder / "ansible"),
    "ANSIBLE_HOST_KEY_CHECKING": "True",
    "ANSIBLE_SSH_ARGS": " ".join(options),
    "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
    "LC_ALL": "C.UTF-8",
}
command = [
    str(Path(sys.executable).with_name("ansible")),
    "all",
    "-i",
    str(inventory),
    "-m",
    "raw",
    "-a",
    COMMAND,
]
command += ["-f", FORKS, "-o", "-u", fleet["username"], "--private-key", fleet["key_file"]]


def run() -> int:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    succeeded = sum(1 for line in done.stdout.splitlines() if "CHANGED" in line and "rc=0" in line)
    if succeeded != len(fleet["devices"]):
        print(done.stdout[-1000:], done.stderr[-1000:], file=sys.stderr)
    return len(fleet["devices"]) - succeeded


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


print('{"ready": true}', flush=True)
for _ in sys.stdin:
    began, cpu = time.monotonic(), children_s()
    failed = run()
    fan_out.answer(time.monotonic() - began, children_s() - cpu, failed)
for socket in sockets.iterdir():
    subprocess.run(["ssh", "-O", "exit", "-S", str(socket), "all"], capture_output=True, check=False)
