"""Starts real SSH servers on loopback: OpenSSH, Dropbear, and a device of BusyBox alone.

Each server has its own folder with its keys, its own home directory and its own process group, by
which it is ended. As root each also has its own mount namespace, so that the login shell and the
home directory of the login can differ from the machine's. Without root, or as a root that may not
mount (in a plain container), only OpenSSH can be had, with the user's own home and shell.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_ELSEWHERE = "/usr/sbin:/sbin:/usr/local/sbin"
_SERVERS = frozenset({"sshd", "sshd-session", "sshd-auth", "dropbear"})
_START_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0


class CannotStartError(RuntimeError):
    """A program is missing, a right is missing, or the server did not come up."""


@dataclass
class SshServer:
    """A running server.

    Attributes:
        process: its leading process; its group is its own.
        folder: where its keys and its log are.
        port: on 127.0.0.1.
        username: who can log in, with `client_key`.
        host_keys: its public host keys, one OpenSSH line each.
        client_key: an OpenSSH private key that it accepts.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    username: str
    host_keys: tuple[str, ...]
    client_key: str = field(repr=False)
    host: str = "127.0.0.1"

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return (self.folder / "server.log").read_text(errors="replace")

    def freeze(self) -> None:
        """Stop the server and its connections in their tracks (not the commands they run)."""
        self._signal(self._processes(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(self._processes(), signal.SIGCONT)

    def stop(self) -> None:
        """End the server and its connections. Calling it twice is safe."""
        processes = self._processes()
        self._signal(processes, signal.SIGCONT)
        self._signal(processes, signal.SIGTERM)
        try:
            self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._signal(processes[1:], signal.SIGKILL)

    def _processes(self) -> list[int]:
        """The listener and the processes of its connections, which are sessions of their own."""
        if self.process.poll() is not None:
            return []
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            for child in children.get(pid, []):
                with suppress(OSError):
                    if os.readlink(f"/proc/{child}/exe").rpartition("/")[2] in _SERVERS:
                        found.append(child)
        return found

    @staticmethod
    def _signal(processes: list[int], number: int) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def __enter__(self) -> SshServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_openssh(
    folder: Path,
    *,
    port: int = 0,
    shell: str | None = None,
    host_keys: Sequence[str] = ("ed25519",),
    settings: Sequence[str] = (),
    client_key: Path | None = None,
    sudoer: str | None = None,
) -> SshServer:
    """Start OpenSSH's sshd.

    Args:
        folder: an empty or a former folder of this server; keys in it are used again.
        port: 0 takes a free one.
        shell: login shell, as root only.
        host_keys: kinds (`ed25519`, `rsa`, `ecdsa`), one key each.
        settings: more lines for its configuration; they replace ours of the same name.
        client_key: private key file to accept (its `.pub` beside it), else one is made.
        sudoer: who logs in: a user that only this server has, whom sudo lets be anyone; as root only.
    """
    sshd = _program("sshd")
    folder.mkdir(parents=True, exist_ok=True)
    keys = [_keygen(folder / f"host_{kind}", kind) for kind in host_keys]
    client = client_key or _keygen(folder / "client", "ed25519")
    home = _home(folder, client)
    chosen = port or _free_port()
    if sudoer is not None:
        # Read by root: a folder of tests is closed to other users.
        keys_of = f"AuthorizedKeysCommand {_program('cat')} {home / '.ssh' / 'authorized_keys'}"
        settings = [*settings, keys_of, "AuthorizedKeysCommandUser root", "AuthorizedKeysFile none"]
    named = {line.split()[0] for line in settings}
    lines = [
        f"Port {chosen}",
        "ListenAddress 127.0.0.1",
        *(f"HostKey {key}" for key in keys),
        "PidFile none",
        f"AuthorizedKeysFile {home / '.ssh' / 'authorized_keys'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin yes",
        "PrintMotd no",
        "LogLevel INFO",
        "MaxStartups 100",
    ]
    config = folder / "sshd_config"
    # Not left to the file's order: of most names sshd takes the first line, of MaxStartups the last.
    lines = [*settings, *(line for line in lines if line.split()[0] not in named)]
    config.write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start without it
    command = [sshd, "-D", "-e", "-f", str(config)]
    command = _with_sudoer(command, folder, sudoer) if sudoer else _with_login(command, folder, home, shell)
    return _start(command, folder, chosen, _public(keys), client, username=sudoer)


def start_dropbear(
    folder: Path,
    *,
    port: int = 0,
    shell: str = "/bin/sh",
    options: Sequence[str] = (),
    client_key: Path | None = None,
) -> SshServer:
    """Start Dropbear with an ed25519 host key; needs root for a home directory of its own."""
    dropbear = _program("dropbear")
    _root("Dropbear")
    folder.mkdir(parents=True, exist_ok=True)
    client = client_key or _keygen(folder / "client", "ed25519")
    home = _home(folder, client)
    host_key = _dropbear_key(folder / "host_dropbear")
    chosen = port or _free_port()
    command = [dropbear, "-F", "-E", "-m", "-s", "-p", f"127.0.0.1:{chosen}"]
    command += ["-P", str(folder / "pid"), "-r", str(folder / "host_dropbear"), *options]
    command = _with_login(command, folder, home, shell)
    return _start(command, folder, chosen, (host_key,), client)


def start_busybox(
    folder: Path, *, port: int = 0, without: Sequence[str] = (), client_key: Path | None = None
) -> SshServer:
    """Start a device that has Dropbear, BusyBox ash and its applets, and nothing else; needs root.

    Args:
        folder: becomes the device's root directory.
        port: 0 takes a free one.
        without: applets that this device lacks, such as `setsid`.
        client_key: as for OpenSSH.
    """
    busybox, dropbear = _program("busybox"), _program("dropbear")
    _root("a BusyBox device")
    root = folder / "root"
    for name in ("bin", "proc", "dev", "etc", "tmp", "home/.ssh"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "home").chmod(0o700)
    for program in (busybox, dropbear):
        _copy(Path(program), root / "bin" / Path(program).name)
        for library in _libraries(program):
            _copy(library, root / library.relative_to("/"))
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        link = root / "bin" / applet
        if applet not in without and not link.exists():
            link.symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/home:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shells").write_text("/bin/sh\n")
    client = client_key or _keygen(folder / "client", "ed25519")
    _authorize(root / "home/.ssh/authorized_keys", client)
    host_key = _dropbear_key(root / "etc/host_dropbear")
    chosen = port or _free_port()
    for device in ("null", "zero", "urandom"):
        (root / "dev" / device).touch()
    script = "\n".join(
        [
            "set -e",
            f"cd {shlex.quote(str(root))}",
            "mount --bind /proc proc",
            *(f"mount --bind /dev/{device} dev/{device}" for device in ("null", "zero", "urandom")),
            "PATH=/bin",
            f'exec {shutil.which("chroot", path=_ELSEWHERE) or "/usr/sbin/chroot"} . "$@"',
        ]
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "device"]
    command += ["/bin/dropbear", "-F", "-E", "-m", "-s", "-p", f"127.0.0.1:{chosen}"]
    command += ["-P", "/tmp/pid", "-r", "/etc/host_dropbear"]
    return _start(command, folder, chosen, (host_key,), client, username="root")


def _with_login(command: list[str], folder: Path, home: Path, shell: str | None) -> list[str]:
    """The command in a mount namespace where the login has this home and this shell."""
    if os.geteuid() != 0:
        if shell is not None:
            _root("a login shell of one's own")
        return command
    if shell is None and not _may_mount():
        return command
    name = pwd.getpwuid(0).pw_name
    lines = Path("/etc/passwd").read_text().splitlines()
    own = f"{name}:x:0:0:root:{home}:{shell or '/bin/sh'}"
    passwd = folder / "passwd"
    passwd.write_text("\n".join([own, *(line for line in lines if not line.startswith(f"{name}:"))]) + "\n")
    return _with_files(command, {passwd: "/etc/passwd"})


def _with_sudoer(command: list[str], folder: Path, name: str) -> list[str]:
    """The command where there is this user, and sudo's rule for it."""
    _root("a user of one's own")
    _program("sudo")
    passwd, sudoers = folder / "passwd", folder / "sudoers"
    # With `*` and not `x` nobody looks for the user in /etc/shadow.
    passwd.write_text(f"{Path('/etc/passwd').read_text()}{name}:*:54321:65534::/:/bin/sh\n")
    sudoers.write_text(f"{name} ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    return _with_files(command, {passwd: "/etc/passwd", sudoers: "/etc/sudoers"})


def _with_files(command: list[str], files: dict[Path, str]) -> list[str]:
    """The command in a mount namespace where these files lie over the machine's."""
    mounts = [f"mount --bind {shlex.quote(str(ours))} {theirs}" for ours, theirs in files.items()]
    script = " && ".join([*mounts, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "device", *command]


def _may_mount() -> bool:
    """Whether this root has a namespace of its own to give; in a plain container it has not."""
    probe = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "--bind",
        "/etc/passwd",
        "/etc/passwd",
    ]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _start(
    command: list[str],
    folder: Path,
    port: int,
    host_keys: tuple[str, ...],
    client: Path,
    *,
    username: str | None = None,
) -> SshServer:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    server = SshServer(
        process=process,
        folder=folder,
        port=port,
        username=username or pwd.getpwuid(os.geteuid()).pw_name,
        host_keys=host_keys,
        client_key=client.read_text(),
    )
    deadline = time.monotonic() + _START_WITHIN_S
    while not _greets(port):
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise CannotStartError(f"{command[0]} did not start: {server.log[-2000:]}")
        time.sleep(0.02)
    return server


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=_ELSEWHERE)
    if found is None:
        raise CannotStartError(f"{name} is not installed")
    return found


def _root(what: str) -> None:
    if os.geteuid() != 0:
        raise CannotStartError(f"{what} needs root here")


def _keygen(path: Path, kind: str) -> Path:
    if not path.exists():
        command = [_program("ssh-keygen"), "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def _dropbear_key(path: Path) -> str:
    """Make or read a Dropbear host key; its public line."""
    program = _program("dropbearkey")
    how = ["-y"] if path.exists() else ["-t", "ed25519"]
    shown = subprocess.run(
        [program, *how, "-f", str(path)], capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in shown.splitlines() if line.startswith("ssh-ed25519 "))
    return " ".join(line.split()[:2])


def _public(keys: Sequence[Path]) -> tuple[str, ...]:
    return tuple(" ".join(Path(f"{key}.pub").read_text().split()[:2]) for key in keys)


def _home(folder: Path, client: Path) -> Path:
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / ".ssh").chmod(0o700)
    _authorize(home / ".ssh" / "authorized_keys", client)
    return home


def _authorize(path: Path, client: Path) -> None:
    path.write_text(Path(f"{client}.pub").read_text())
    path.chmod(0o600)


def _libraries(program: str) -> list[Path]:
    """Shared libraries of a program; none for a static one."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    words = (word for line in listed.splitlines() for word in line.split())
    return [Path(word) for word in words if word.startswith("/")]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)
