from __future__ import annotations

import shutil
import subprocess

import pytest

from iotjobs.domain.shellnames import USER, carried, variable_problem


@pytest.mark.parametrize("name", ["PATH", "HOME", "_", "x1", "ij_1", "LC_ALL"])
def test_an_ordinary_variable_is_taken(name: str) -> None:
    assert variable_problem(name) is None
    assert carried(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "letters, digits"),
        ("1X", "letters, digits"),
        ("A-B", "letters, digits"),
        ("A\n", "letters, digits"),
        ("É", "letters, digits"),
        ("IFS", "belongs to the shell"),
        ("UID", "belongs to the shell"),
        ("PPID", "belongs to the shell"),
        ("OPTIND", "belongs to the shell"),
        ("_ij_l", "are ours"),
        ("IJ_1", "are ours"),
        ("IOTJOBS_RUN", "are ours"),
        ("IOTJOBS_JOB_ID", "are ours"),
    ],
)
def test_what_a_shell_or_we_need_is_refused_with_the_reason(name: str, said: str) -> None:
    assert said in str(variable_problem(name))


def test_a_run_carries_our_own_too_but_not_what_its_start_lives_on() -> None:
    assert carried("IJ_1")
    assert carried("IOTJOBS_JOB_ID")
    assert not any(carried(name) for name in ("IOTJOBS_RUN", "IOTJOBS_W", "IOTJOBS_LED", "IJ_é", "_ij_g"))


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_shells_that_are_here_live_on_after_every_name_that_is_taken(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    # What the shell itself knows, and could mind.
    known = subprocess.run([shell, "-c", "set"], capture_output=True, text=True, check=True).stdout
    names = {line.partition("=")[0] for line in known.splitlines() if "=" in line}
    names |= {"LINENO", "RANDOM", "SECONDS", "OPTARG", "HISTCMD", "FUNCNAME", "DIRSTACK", "BASHPID"}

    for name in sorted(name for name in names if carried(name)):
        ran = subprocess.run([shell, "-c", f'export "{name}=x"; echo alive'], capture_output=True, check=True)
        assert ran.stdout == b"alive\n", name


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("root", True),
        ("_apt", True),
        ("j.doe-2", True),
        ("machine$", True),
        ("x" * 32, True),
        ("x" * 33, False),
        ("", False),
        ("-u", False),
        ("1st", False),
        ("a b", False),
        ("a\n", False),
        ("$", False),
    ],
)
def test_users(name: str, taken: bool) -> None:
    assert (USER.match(name) is not None) is taken
