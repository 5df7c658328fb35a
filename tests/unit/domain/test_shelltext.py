from __future__ import annotations

import os
import subprocess
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iotjobs.domain.macros import MacroError, Values, check_shell, find, render_shell
from tests.services.programs import require_program

ALLOWED = [
    ("cat <<EOF\nfoo $x\nEOF\necho {{id}}", 'cat <<EOF\nfoo $x\nEOF\necho "${IJ_0}"'),
    ("cat <<-'E'\n\t$(\n\tE\necho {{id}}", "cat <<-'E'\n\t$(\n\tE\necho \"${IJ_0}\""),
    ("cat <<A <<B\na\nA\nb\nB\necho {{id}}", 'cat <<A <<B\na\nA\nb\nB\necho "${IJ_0}"'),
    ("x={{id}}\ncat <<E\n$(x)\nE\n", 'x="${IJ_0}"\ncat <<E\n$(x)\nE\n'),
    (
        "case {{id}} in a) echo {{id}};; (b|c) ;; *) :; esac; echo {{id}}",
        'case "${IJ_0}" in a) echo "${IJ_0}";; (b|c) ;; *) :; esac; echo "${IJ_0}"',
    ),
    (
        "for i in {{id}} b; do echo $i; done > {{id}} 2>&1",
        'for i in "${IJ_0}" b; do echo $i; done > "${IJ_0}" 2>&1',
    ),
    ("if [ {{id}} = a ]; then (echo {{id}}); fi", 'if [ "${IJ_0}" = a ]; then (echo "${IJ_0}"); fi'),
    ("f() { echo {{id}}; }; f", 'f() { echo "${IJ_0}"; }; f'),
    ("function f { echo {{id}}; }", 'function f { echo "${IJ_0}"; }'),
    ("while read x; do echo {{id}}; done <f", 'while read x; do echo "${IJ_0}"; done <f'),
    ("a=1 b={{id}} c d", 'a=1 b="${IJ_0}" c d'),
    ("echo a \\\n {{id}} && \\\n echo {{id}}", 'echo a \\\n "${IJ_0}" && \\\n echo "${IJ_0}"'),
    ("echo {{id}}>f 2>{{id}}", 'echo "${IJ_0}">f 2>"${IJ_0}"'),
    ("[[ $a == b ]] && echo {{id}}", '[[ $a == b ]] && echo "${IJ_0}"'),
    ("! grep {{id}} f || echo {{id}} >&2 & wait", '! grep "${IJ_0}" f || echo "${IJ_0}" >&2 & wait'),
    ("# it's\necho {{id}} # it's", "# it's\necho \"${IJ_0}\" # it's"),
    ("cat <<<{{id}}", 'cat <<<"${IJ_0}"'),
]

# The mark ^ stands before the macro that is refused.
REFUSED = [
    "# ^{{id}}", "echo {{id}} #^{{id}}", "echo {{id}} # it's ^{{id}}", "$(echo # ^{{id}}\n)",
    "cat <<EOF\n^{{id}}\nEOF\n", "cat <<'EOF'\nx\n^{{id}}\nEOF\n", "cat <<-EOF\n\t^{{id}}\n\tEOF\n",
    "cat <<^{{id}}\nx\n", "cat <<'^{{id}}'\nx\n", "cat <<A\n$(\nA\n)\nA\necho ^{{id}}", "cat <<A\nx\\\nA\nA\necho ^{{id}}",
    "echo $(cat <<A\nx\nA\n) ^{{id}}", 'cat <<A "x\nA\n" ^{{id}}', "cat <<A\necho ^{{id}}",
    "((x=^{{id}}))", "for ((i=^{{id}};;)); do :; done", "[[ ^{{id}} == a ]]", "[[ $a -eq 1 && ^{{id}} -eq 2 ]]",
    "[[ $a =~ ^(a|b)$ ]] && echo ^{{id}}", "for ^{{id}} in a; do :; done", "function ^{{id}} { :; }", "^{{id}}() { :; }",
    "case a in ^{{id}}) ;; esac", "x=$(case a in a) echo;; esac) ^{{id}}", "a=(^{{id}})", "a=(1); echo ^{{id}}",
    "a[1]=x ^{{id}}", "a[^{{id}}]=1", "diff <(a) ^{{id}}", "cmd &>f ^{{id}}", "cmd >&^{{id}}", "echo $(a ^{{id}}",
    "echo ^{{id}} (", "echo ^{{id}}(x)", "echo ) ^{{id}}", "echo ;; ^{{id}}", "coproc ^{{id}}", "alias a=b\necho ^{{id}}",
    "declare -i n\nn=^{{id}}", "echo a\\\nb ^{{id}}", "cat <\\\n<A\n^{{id}}", "IJ_0=1; echo ^{{id}}", "echo a\r\necho ^{{id}}",
    "echo @(a|^{{id}})", "time -p ^{{id}}",
]  # fmt: skip

VALUES = Values({"id": "x"})


@pytest.mark.parametrize(("text", "expected"), ALLOWED)
def test_a_macro_becomes_a_quoted_variable(text: str, expected: str) -> None:
    shell = render_shell(text, VALUES, "bash")
    assert (shell.text, shell.env) == (expected, {"IJ_0": "x"})


@pytest.mark.parametrize("marked", REFUSED)
def test_where_nobody_can_be_certain_a_macro_is_refused_at_its_place(marked: str) -> None:
    position = marked.rindex("^{{")
    text = marked[:position] + marked[position + 1 :]
    with pytest.raises(MacroError) as caught:
        check_shell(text, "bash")
    if caught.value.name is None:  # about the text, which would be wrong with any macro
        assert text[caught.value.position :].startswith(("IJ_", "\r"))
    else:
        assert caught.value.position == position


@pytest.mark.parametrize("marked", REFUSED)
def test_text_without_macros_is_the_authors_own(marked: str) -> None:
    text = marked.replace("{{id}}", "x")
    assert render_shell(text, VALUES, "sh").text == text


def test_a_here_string_is_refused_where_the_shell_may_be_dash() -> None:
    with pytest.raises(MacroError, match="<<<"):
        check_shell("cat <<<{{id}}", "sh")


def test_deep_nesting_is_refused_and_does_not_end_the_process() -> None:
    with pytest.raises(MacroError, match="nesting"):
        check_shell("echo " + "$(echo " * 5000 + "{{id}}" + ")" * 5000, "sh")


def test_a_long_script_is_read_in_time() -> None:
    check_shell("echo 'a b' \"c $d\" {{id}} $(e f) # g\n" * 2000, "sh")


# What follows runs real shells.

NASTY = [
    "", " ", "\n", "\n\na\n\n", " a  b ", "; touch owned", "$(touch owned)", "`touch owned`", "| cat", "& :", "> owned",
    "'", '"', "\\", "\\\\", "\\'", "'; touch owned; '", '"; touch owned; "', "-oProxyCommand=touch owned", "--", "-n", "-e",
    "*", "?", "[a-z]*", "~", "~root", "{a,b}", "$HOME", "${IJ_0}", "${x:-y}", "$", "!", "!!", "#", "# x", "a\nb", "\t", "\r\n",
    "%s%n", "\\n\\0041", "\u0401\u0441\u0430\u0301\U0001f600\u00a0", "\x01\x02\x7f", "\u0081\u0088", "a[$(touch owned)]", "=", "(", ")", "]",
    "EOF", "{{id}}", "IJ_0=x",
]  # fmt: skip

# Each hole is ^; what the words are without quotes is told by the plain word.
WORDS = [
    "^", "a^b", "'^'", "'a ^ b'", '"^"', '"a ^ b"', "'a'^'b'", '"$(printf "%s." ^)"', '"$(printf \'%s.\' \'^\')"',
    '"a$(echo x "$(echo y)")^"', "--name=^", "$#^", "${none}^", '"${none:-d}^"', "a\\\\^", '"a\\\\^"', "a#^", "*^", "^^",
    "'\"'^'\"'", '"\'^\'"', "x=^", "é^",
]  # fmt: skip

SHOW = 'show() { printf \'%s\\0\' "$#" "$@"; }\n'


def shells() -> list[list[str]]:
    return [
        [require_program("dash", package="dash")],
        [require_program("bash", package="bash")],
        [require_program("bash", package="bash"), "--posix"],
        [require_program("busybox", package="busybox"), "ash"],
    ]


def run(shell: list[str], text: str, env: dict[str, str], cwd: Path) -> tuple[bytes, int]:
    """A shell in an empty folder and environment."""
    done = subprocess.run(
        [*shell, "-c", text],
        env={"PATH": os.environ["PATH"], **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=False,
    )
    return done.stdout, done.returncode


def expected_word(word: str, value: str) -> str:
    known = {"$#^": "0^", "${none}^": "^", '"${none:-d}^"': "d^", "a\\\\^": "a\\^", '"a\\\\^"': "a\\^"}
    known |= {'"a$(echo x "$(echo y)")^"': "ax y^", "'\"'^'\"'": '"^"', "\"'^'\"": "'^'", "'a'^'b'": "a^b"}
    if "printf" in word:
        return value + "."
    text = known.get(word, word if word in known else word.strip("'\""))
    return text.replace("^", value)


def assert_words_arrive(values: list[str], every_shell: list[list[str]], cwd: Path) -> None:
    names = count()
    lines, expected, args = [SHOW], [], {}
    for value in values:
        for word in WORDS:
            name = f"v{next(names)}"
            args[name] = value
            lines.append("show " + word.replace("^", f"{{{{args.{name}}}}}") + "\n")
            expected += ["1", expected_word(word, value)]
    rendered = render_shell("".join(lines), Values({"args": dict(args)}), "sh")
    for shell in every_shell:
        output, status = run(shell, rendered.text, rendered.env, cwd)
        assert output.decode().split("\0")[:-1] == expected
        assert status == 0
    assert not list(cwd.iterdir())


@pytest.mark.parametrize("index", range(4))
def test_a_nasty_value_arrives_byte_by_byte_as_one_word_in_every_context(index: int, tmp_path: Path) -> None:
    assert_words_arrive(NASTY, [shells()[index]], tmp_path)


TEXTS = st.text(
    st.one_of(
        st.sampled_from(" ;$()`|&><\n'\"\\-*?~#%{}[]!=a"),
        st.characters(exclude_characters="\0", codec="utf-8"),
    ),
    max_size=12,
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_value_arrives_byte_by_byte_as_one_word_in_every_context(
    values: list[str], tmp_path: Path
) -> None:
    assert_words_arrive(values, shells(), tmp_path)


HARMLESS = "zq7"
FRAGMENTS = [
    "{{args.v}}", "{{args.v}}", "{{args.v}}", "{{args.v}}", " ", " ", "\n", "show ", "; show ", "'", "'", '"', '"', "\\", "\\\n", "$", "$x", "$1",
    "${x}", "${x:-", "}", "{", ",", "$(count ", ")", "(", "`", "`", "$((", "))", "1+", "#", "a", "b c", "[", "]", "~", "*", "=", "y=",
    "<<E\n", "\nE\n", "<<'E'\n", "<<-E\n", "$'", '$"', "\\'", "case x in ", "x) show ", ";; ", " esac\n", " in ", "for i in ", "; do show ", "; done\n",
    "if show ", "; then show ", "; fi\n", "&& show ", "| show ", "f() { show ", "; }\n", "'b c'", '"b c"', '"$(count {{args.v}})"', "'a {{args.v}} b'", '"a {{args.v}} b"',
]  # fmt: skip
BEFORE = SHOW + "count() { printf '%s' \"$#\"; }\nx='p q'\n"


def assert_shape_is_kept(fragments: list[str], value: str, every_shell: list[list[str]], cwd: Path) -> bool:
    """Whatever is accepted does with a value what it does with a harmless one; False if it is refused."""
    text = BEFORE + "show " + "".join(fragments)
    try:
        check_shell(text, "bash")
    except MacroError:
        return False
    if not find(text) or "$$" in text or "\\&&" in text:  # a process's number, a race with the background
        return False
    for shell in every_shell:
        seen = []
        for known in (HARMLESS, value):
            rendered = render_shell(text, Values({"args": {"v": known}}), "bash")
            seen.append(run(shell, rendered.text, rendered.env, cwd))
        (calm, calm_status), (output, status) = seen
        assert output == calm.replace(HARMLESS.encode(), value.encode()), (shell, text)
        assert status == calm_status, (shell, text)
    assert not list(cwd.iterdir())
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=8), value=st.sampled_from(NASTY))
def test_what_is_accepted_treats_any_value_like_a_harmless_one(
    fragments: list[str], value: str, tmp_path: Path
) -> None:
    assert_shape_is_kept(fragments, value, shells(), tmp_path)
