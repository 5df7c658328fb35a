"""The two shell texts that run and end a command on a device, and what is said to them.

A run is one constant exec request (but for the nonce); environment, arguments and script text
follow on stdin, so `ps` shows nothing of them. The text on the device reads line by line until
a line `.`; without it, it runs nothing. Then it tells `iotjobs <nonce> <pid> <group>` on both
outputs, and becomes the command. Needs a POSIX `sh` as login shell or as `sh`, and Linux's /proc.
"""

from __future__ import annotations

import math
import signal

from iotjobs.domain import shellnames
from iotjobs.domain.errors import BadAnswer, BadRequest
from iotjobs.transports.base import CommandEnd, CommandRequest, Gone, KillProof, Stream

INTERPRETERS = frozenset({"sh", "bash", "python3", "perl", "node", "raw"})

# What `.bashrc` and friends may print before the header; more is not a shell start-up.
SKIPPED_MAX_BYTES = 64 * 1024

# Neither text holds a single quote: each travels inside one pair of them.
#
# Lines are `<kind><how><text>`. How `=`: text as it is. `+`: newlines are the character that the
# line `n` told (split on it and joined again: no fork, and linear also for 300 kB). `\`: for
# printf %b. The last two end in a full stop, so that a last newline survives.
# Dropbear does not give a command its own group (OpenSSH does), hence setsid. That there is a group
# of our number is asked by signal 0: one call, where dash reads /proc byte by byte.
# Here-documents are pipes in dash and ash, so script text is in no file and no argument. node
# cannot open a pipe by its path, and reads stdin to its end before it runs anything.
RUN_TEXT = r"""
_ij_g=$$
if ! kill -0 -$$ 2>/dev/null; then
  if [ -z "$IOTJOBS_LED" ] && command -v setsid >/dev/null 2>&1; then
    IOTJOBS_LED=1 exec setsid sh -c "$IOTJOBS_W" iotjobs
  fi
  _ij_g=0
fi
unset IOTJOBS_LED
_ij_i= _ij_c= _ij_d= _ij_k= _ij_s=
_ij_n() {
  IFS="
"
  _ij_v="$*"
}
while IFS= read -r _ij_l; do
  _ij_v=${_ij_l#??}
  case $_ij_l in
  .) _ij_k=1; break;;
  ?=*) ;;
  ?+*) IFS=$_ij_s; set -f; _ij_n $_ij_v; set +f; unset IFS; _ij_v=${_ij_v%?};;
  *) _ij_v=$(printf %b "$_ij_v"); _ij_v=${_ij_v%?};;
  esac
  case $_ij_l in
  e*) export "$_ij_v";;
  a*) set -- "$@" "$_ij_v";;
  s*) _ij_c=$_ij_v;;
  i*) _ij_i=$_ij_v;;
  d*) _ij_d=$_ij_v;;
  n*) _ij_s=$_ij_v;;
  u*) if [ "$(id -u)" = 0 ]; then
      export IOTJOBS_RUN IOTJOBS_W
      exec su -s /bin/sh -c "exec sh -c \"\$IOTJOBS_W\" iotjobs" "$_ij_v"
    fi
    exec sudo -n -u "$_ij_v" env "IOTJOBS_RUN=$IOTJOBS_RUN" "IOTJOBS_W=$IOTJOBS_W" sh -c "eval \"\$IOTJOBS_W\"" iotjobs;;
  esac
done
[ "$_ij_k" ] || exit 125
unset IOTJOBS_W
unset -f _ij_n
exec </dev/null
_ij_l="iotjobs $IOTJOBS_RUN $$ $_ij_g"
echo "$_ij_l"; echo "$_ij_l" >&2
if [ "$_ij_d" ]; then cd -- "$_ij_d" >/dev/null || exit 126; fi
case $_ij_i in
"") exec "$@";;
sh) eval "unset _ij_c _ij_d _ij_g _ij_i _ij_k _ij_l _ij_s _ij_v; $_ij_c";;
node) exec node - "$@" <<_IJ_
$_ij_c
_IJ_
;;
*) exec "$_ij_i" /proc/self/fd/3 "$@" 3<<_IJ_
$_ij_c
_IJ_
;;
esac
"""

# `$1` group or 0, `$2` nonce, `$3` polls of 0.2 s between TERM and KILL, empty: only look.
#
# The group's number may have gone to somebody else since: its members count as ours once one
# with the marker was seen among them; before that they are told as left, and left alone.
# Processes of another user (run_as through sudo) are looked at as that user where sudo lets us.
KILL_TEXT = r"""
p=$1 n=$2 t=$3 sig=TERM k=0 ours=
if [ "$p" != 0 ] && [ -d /proc/$p ] && [ -z "$4" ] && ! [ -r /proc/$p/environ ]; then
  set -- $(ls -ldn /proc/$p)
  if [ "$3" ] && sudo -n -u "#$3" true 2>/dev/null; then
    exec sudo -n -u "#$3" sh -c "$IOTJOBS_K" iotkill "$p" "$n" "$t" again
  fi
fi
marked() {
  grep -l "IOTJOBS_RUN=$n" /proc/[0-9]*/environ 2>/dev/null | while IFS=/ read -r _ _ q _; do
    { read -r l </proc/$q/stat; } 2>/dev/null || continue
    case ${l##*) } in [ZX]*) ;; *) echo $q;; esac
  done
}
members() {
  [ "$p" = 0 ] || for d in /proc/[0-9]*; do
    { read -r l <$d/stat; } 2>/dev/null || continue
    set -- ${l##*) }
    case $1 in [ZX]) continue;; esac
    if [ "$3" = "$p" ] || [ "$4" = "$p" ]; then echo ${d#/proc/}; fi
  done
}
while :; do
  m=$(marked) g=$(members)
  for q in $m; do for r in $g; do [ $q != $r ] || ours=1; done; done
  [ "$m$g" ] || { echo "gone $sig $k"; exit 0; }
  if [ -z "$t" ] || { [ -z "$m" ] && [ -z "$ours" ]; }; then echo left $m $g; exit 1; fi
  if [ $k = 0 ] || [ $sig = KILL ]; then
    [ -z "$ours" ] || kill -$sig -$p 2>/dev/null
    kill -$sig $m 2>/dev/null
    [ -z "$ours" ] || kill -$sig $g 2>/dev/null
  fi
  k=$((k+1))
  if [ $sig = KILL ]; then
    [ $k -lt 16 ] || { echo left $m $g; exit 1; }
  elif [ $k -gt $t ]; then
    sig=KILL k=0
    continue
  fi
  sleep 0.2 2>/dev/null || sleep 1
done
"""

_POLL_S = 0.2
_PID_MOST = 2**31 - 1
_NEWLINE_STAND_INS = (b"\x1e", b"\x1f", b"\x1c", b"\x1d")
_WITHOUT_LAST_NEWLINE = slice(1, -1)


def quote(text: str) -> str:
    """One word for a POSIX shell, whatever is in it."""
    return "'" + text.replace("'", "'\\''") + "'"


_RUN_QUOTED = quote(RUN_TEXT[_WITHOUT_LAST_NEWLINE])
_KILL_QUOTED = quote(KILL_TEXT[_WITHOUT_LAST_NEWLINE])


def exec_request(request: CommandRequest) -> tuple[str, bytes | None]:
    """The exec request of a run, and what it reads from stdin: None for `raw`, whose request is all of it.

    Raises:
        BadRequest: a name or a value that no shell could carry unharmed.
    """
    if request.interpreter == "raw" and request.script is not None:
        check(request)
        return request.script, None
    return run_command(request.nonce), prologue(request)


def run_command(nonce: str) -> str:
    """The exec request of a run: constant but for the nonce."""
    _check_nonce(nonce)
    return f"IOTJOBS_RUN={nonce} IOTJOBS_W={_RUN_QUOTED} exec sh -c 'eval \"$IOTJOBS_W\"' iotjobs"


def kill_command(nonce: str, group: int, kill_after_s: float | None) -> str:
    """The exec request that ends a run and proves it gone; with None it only looks.

    It says a word at once, so that a device which does not answer is told from one that is at work.
    """
    _check_nonce(nonce)
    polls = "''" if kill_after_s is None else str(max(0, math.ceil(kill_after_s / _POLL_S)))
    return f"echo asked; IOTJOBS_K={_KILL_QUOTED} exec sh -c 'eval \"$IOTJOBS_K\"' iotkill {max(0, int(group))} {nonce} {polls}"


def prologue(request: CommandRequest) -> bytes:
    """What the exec request reads from stdin: user, directory, environment, text, arguments.

    Raises:
        BadRequest: a name or a value that no shell could carry unharmed.
    """
    check(request)
    lines: list[tuple[bytes, bytes]] = []
    if request.run_as is not None:
        lines.append((b"u", _bytes(request.run_as, "run_as")))
    lines.extend((b"e", _bytes(f"{name}={value}", f"env.{name}")) for name, value in request.env.items())
    if request.cwd is not None:
        cwd = request.cwd
        lines.append((b"d", _bytes(f"./{cwd}" if cwd.startswith("-") else cwd, "cwd")))
    if request.script is not None:
        lines.append((b"i", request.interpreter.encode()))
        lines.append((b"s", _bytes(request.script, "text")))
    lines.extend((b"a", _bytes(word, "args")) for word in (request.argv or request.args))
    return _encode(lines)


def _encode(lines: list[tuple[bytes, bytes]]) -> bytes:
    """The lines of the prologue; the first of them, `u`, must stay first: what follows is for that user."""
    folded = [text for _, text in lines if b"\n" in text]
    stand_in = next((one for one in _NEWLINE_STAND_INS if not any(one in text for text in folded)), b"")
    out = []
    for kind, text in lines:
        if b"\n" not in text:
            out.append(kind + b"=" + text)
        elif stand_in:
            out.append(kind + b"+" + text.replace(b"\n", stand_in) + b".")
        else:
            out.append(kind + b"\\" + text.replace(b"\\", b"\\\\").replace(b"\n", b"\\n") + b".")
    if folded and stand_in:
        out.insert(1 if lines[0][0] == b"u" else 0, b"n=" + stand_in)
    out.append(b".\n")
    return b"\n".join(out)


# MAX_ARG_STRLEN: 32 pages, with `=` and the NUL at the end.
ENV_LIMIT_BYTES = 128 * 1024 - 2


def check(request: CommandRequest) -> None:
    """Refuse what cannot be run as asked.

    Raises:
        BadRequest: with the field and what is wrong with it.
    """
    if (request.script is None) == (not request.argv):
        raise BadRequest("give either a script or a program", field="text")
    if request.script is not None and request.interpreter not in INTERPRETERS:
        raise BadRequest(f"the interpreter is none of {', '.join(sorted(INTERPRETERS))}", field="interpreter")
    if request.argv and (not request.argv[0] or request.argv[0].startswith("-")):
        raise BadRequest("a program's path is not empty and does not start with '-'", field="path")
    for name in request.env:
        if not shellnames.carried(name):
            raise BadRequest(f"{name!r} cannot be the name of an environment variable", field="env")
        if len(name) + len(request.env[name].encode(errors="replace")) > ENV_LIMIT_BYTES:
            raise BadRequest(
                f"{name} is longer than the {ENV_LIMIT_BYTES} bytes that Linux takes", field="env"
            )
    if request.run_as is not None and not shellnames.USER.match(request.run_as):
        raise BadRequest(f"{request.run_as!r} is not a user name", field="run_as")
    if request.cwd is not None and not request.cwd:
        raise BadRequest("the directory is empty", field="cwd")


def _bytes(text: str, field: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("a lone surrogate cannot be sent", field=field) from error
    if b"\0" in data:
        raise BadRequest("a NUL character cannot be sent", field=field)
    return data


def _check_nonce(nonce: str) -> None:
    if not (nonce.isascii() and nonce.isalnum()):
        raise ValueError("a nonce is ASCII letters and digits")


class Header:
    """Takes the header line, and all that a login shell printed before it, off both outputs.

    Attributes:
        run: process id and group once told, else None.
    """

    __slots__ = ("_mark", "_waiting", "run")

    def __init__(self, nonce: str) -> None:
        self.run: tuple[int, int] | None = None
        self._mark = f"iotjobs {nonce} ".encode()
        self._waiting = {Stream.STDOUT: b"", Stream.STDERR: b""}

    def feed(self, stream: Stream, data: bytes) -> bytes:
        """Give the next bytes of a stream, get those that belong to the command.

        Raises:
            BadAnswer: the header did not come in 64 KiB, or is not one.
        """
        waiting = self._waiting
        if stream not in waiting:
            return data
        data = waiting[stream] + data
        start = data.find(self._mark)
        end = data.find(b"\n", start) if start >= 0 else -1
        if end < 0:
            if len(data) > SKIPPED_MAX_BYTES:
                raise BadAnswer(f"more than {SKIPPED_MAX_BYTES // 1024} KiB came before the command's start")
            waiting[stream] = data
            return b""
        del waiting[stream]
        if self.run is None:
            self.run = self._numbers(data[start + len(self._mark) : end])
        return data[end + 1 :]

    def rest(self, stream: Stream) -> bytes:
        """What came on a stream that never told the header."""
        return self._waiting.pop(stream, b"")

    def said(self) -> str:
        """What the device said instead of the header: one line for an error message."""
        text = b" ".join(self._waiting.values()).decode(errors="replace")
        return " ".join(text.split())[:300]

    @staticmethod
    def _numbers(text: bytes) -> tuple[int, int]:
        try:
            pid, group = (int(number) for number in text.split())
        except ValueError as error:
            raise BadAnswer("the command's first line does not tell its process") from error
        if not (0 < pid <= _PID_MOST and 0 <= group <= _PID_MOST):
            raise BadAnswer("the command's first line tells no process that there can be")
        return pid, group


def end_by_signal(name: str) -> CommandEnd:
    """The end of a command that died by a signal, in the numbers that shells use."""
    name = name.removeprefix("SIG")
    try:
        number = int(signal.Signals[f"SIG{name}"])
    except KeyError:
        number = 127  # a private signal of the device: 255, as ssh itself would end
    return CommandEnd(exit_code=128 + number, signal=name)


def proof(answer: bytes) -> KillProof:
    """What the kill text told on its last line."""
    lines = answer.decode(errors="replace").split("\n")
    for line in reversed(lines):
        match line.split():
            case ["gone", *looks]:  # which signal was the last, and how many looks ago
                found = looks not in ([], ["TERM", "0"])
                return KillProof(Gone.GONE, "no process of the run is left", found=found)
            case ["left", *pids]:
                numbers = sorted({int(pid) for pid in pids if pid.isdigit()})
                return KillProof(Gone.LEFT, f"left: {' '.join(map(str, numbers[:20]))}")
    return KillProof(Gone.UNCONFIRMED, "the device did not tell what is left")
