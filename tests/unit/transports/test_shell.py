from __future__ import annotations

import shlex
import subprocess

import pytest

from iotjobs.domain.errors import BadAnswer, BadRequest
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandRequest, Gone, KillProof, Stream

HOSTILE = "".join(map(chr, range(1, 256))) + "ā it's $(id) \\n \n\n"


def _locally(request: CommandRequest, lines: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/sh", "-c", shell.run_command(request.nonce)],
        input=shell.prologue(request) if lines is None else lines,
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=10,
    )


@pytest.mark.parametrize("text", ["", "it's", "a b", "'", HOSTILE.replace("\0", "")])
def test_a_quoted_word_is_one_word(text: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"printf %s {shell.quote(text)}"], capture_output=True, check=True, timeout=10
    )
    assert done.stdout == text.encode()


def test_the_exec_request_is_constant_but_for_the_nonce() -> None:
    assert shell.run_command("a1").replace("a1", "b2") == shell.run_command("b2")
    assert len(shell.run_command("a" * 32)) < 4096
    assert "'" not in shell.RUN_TEXT + shell.KILL_TEXT


@pytest.mark.parametrize("bad", ["", "a b", "$(id)", "a'", "é", "a;b"])
def test_a_nonce_that_is_not_letters_and_digits_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="nonce"):
        shell.run_command(bad)
    with pytest.raises(ValueError, match="nonce"):
        shell.kill_command(bad, 1, 1)


def test_a_prologue_has_one_line_for_each_thing_and_a_last_one() -> None:
    request = CommandRequest(
        nonce="n", script="a\nb", args=("x", ""), env={"E": "1\n2"}, cwd="-d", run_as="anna"
    )
    assert shell.prologue(request).split(b"\n") == [
        b"u=anna", b"n=\x1e", b"e+E=1\x1e2.", b"d=./-d", b"i=sh", b"s+a\x1eb.", b"a=x", b"a=", b".", b"",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value", [HOSTILE, HOSTILE.replace("\x1e", ""), "\n", "a\n", "", "-n", "\\", "\x1e\n"]
)
def test_any_value_arrives_byte_for_byte(value: str) -> None:
    program = ("sh", "-c", 'printf %s "$1$V"', "sh", value)
    done = _locally(CommandRequest(nonce="n1", argv=program, env={"V": value}))
    assert done.stdout.partition(b"\n")[2] == (value * 2).encode()


def test_every_cut_of_a_prologue_runs_nothing() -> None:
    request = CommandRequest(nonce="n1", script="echo ran", env={"A": "b\nc"})
    lines = shell.prologue(request)
    for cut in range(len(lines)):
        done = _locally(request, lines[:cut])
        assert (done.returncode, done.stdout, done.stderr) == (125, b"", b""), lines[:cut]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"script": "x", "argv": ("y",)},
        {"script": "x", "interpreter": "ruby"},
        {"script": "x", "interpreter": "sh -c"},
        {"argv": ("",)},
        {"argv": ("-x",)},
        {"argv": ("a\0b",)},
        {"script": "\ud800"},
        {"script": "x", "env": {"A B": "1"}},
        {"script": "x", "env": {"A=B": "1"}},
        {"script": "x", "env": {"": "1"}},
        {"script": "x", "env": {"1A": "1"}},
        {"script": "x", "env": {"A\n": "1"}},
        {"script": "x", "env": {"IFS": "1"}},
        {"script": "x", "env": {"UID": "1"}},
        {"script": "x", "env": {"_ij_c": "1"}},
        {"script": "x", "env": {"IOTJOBS_RUN": "1"}},
        {"script": "x", "env": {"A": "\0"}},
        {"script": "x", "run_as": "-c"},
        {"script": "x", "run_as": "root; id"},
        {"script": "x", "run_as": "a\n"},
        {"script": "x", "run_as": "#0"},
        {"script": "x", "cwd": ""},
    ],
)
def test_what_no_shell_could_carry_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        shell.prologue(CommandRequest(nonce="n", **fields))  # type: ignore[arg-type]


def test_the_header_is_taken_off_in_any_pieces() -> None:
    text = b"noise\nmore iotjobs n1 12 13\nrest\nof it"
    for cut in range(len(text) + 1):
        header = shell.Header("n1")
        got = header.feed(Stream.STDOUT, text[:cut]) + header.feed(Stream.STDOUT, text[cut:])
        assert (got, header.run) == (b"rest\nof it", (12, 13))
    assert header.feed(Stream.STDERR, b"x") == b""
    assert header.rest(Stream.STDERR) == b"x"


def test_the_header_of_another_run_is_noise() -> None:
    header = shell.Header("n1")
    assert header.feed(Stream.STDOUT, b"iotjobs n2 1 1\nout") == b""
    assert (header.run, header.said()) == (None, "iotjobs n2 1 1 out")


@pytest.mark.parametrize("numbers", [b"", b"1", b"a b", b"1 2 3", b"0 1", b"1 -1", b"1 9999999999"])
def test_a_header_without_two_numbers_is_a_bad_answer(numbers: bytes) -> None:
    with pytest.raises(BadAnswer):
        shell.Header("n1").feed(Stream.STDOUT, b"iotjobs n1 " + numbers + b"\n")


def test_noise_over_64_kib_is_a_bad_answer() -> None:
    header = shell.Header("n1")
    assert header.feed(Stream.STDOUT, b"x" * shell.SKIPPED_MAX_BYTES) == b""
    with pytest.raises(BadAnswer):
        header.feed(Stream.STDOUT, b"x")


@pytest.mark.parametrize(
    ("answer", "proof"),
    [
        (b"gone TERM 0\n", KillProof(Gone.GONE, "no process of the run is left")),
        (b"gone TERM 1\n", KillProof(Gone.GONE, "no process of the run is left", found=True)),
        (b"noise\ngone KILL 0\n", KillProof(Gone.GONE, "no process of the run is left", found=True)),
        (b"left 12 11 12\n", KillProof(Gone.LEFT, "left: 11 12")),
        (b"", KillProof(Gone.UNCONFIRMED, "the device did not tell what is left")),
        (b"sh: not found\n", KillProof(Gone.UNCONFIRMED, "the device did not tell what is left")),
    ],
)
def test_a_kills_answer_is_read_from_its_last_line(answer: bytes, proof: KillProof) -> None:
    assert shell.proof(answer) == proof


def test_a_signal_is_told_as_shells_do() -> None:
    assert shell.end_by_signal("KILL") == CommandEnd(137, "KILL")
    assert shell.end_by_signal("SIGTERM") == CommandEnd(143, "TERM")
    assert shell.end_by_signal("ODD@x").exit_code == 255


def test_a_kill_command_carries_numbers_only() -> None:
    words = shlex.split(shell.kill_command("n1", 12, 5))
    assert words[-4:] == ["iotkill", "12", "n1", "25"]
    assert shlex.split(shell.kill_command("n1", -3, None))[-3:] == ["0", "n1", ""]
