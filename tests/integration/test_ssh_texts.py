"""A thousand strings of any characters through OpenSSH: each arrives byte by byte, wherever it stands."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iotjobs_sim.sshd import SshServer

from iotjobs.domain.macros import Values, render_shell
from iotjobs.transports.ssh import SshTransport
from tests.services.ssh import run, target_of

STRINGS = 1000
IN_ONE_RUN = 25
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" ;$()`|&><\n\r\t'\"\\-*?~#%{}[]!=a\x1e\x1f\x1c\x1d"),
        st.characters(exclude_characters="\0", codec="utf-8"),
    ),
    max_size=24,
)
# How a script may quote a macro, and what is printed of a value there.
CONTEXTS = [
    ("{}", "{}"),
    ("'{}'", "{}"),
    ('"{}"', "{}"),
    ("a{}b", "a{}b"),
    ("'a {} b'", "a {} b"),
    ('"a {} b"', "a {} b"),
    ("--name={}", "--name={}"),
    ("'\"'{}'\"'", '"{}"'),
    ("\"$(printf '%s.' {})\"", "{}."),
    ("\"$(printf '%s.' '{}')\"", "{}."),
]


@pytest.mark.timeout(180)
def test_a_thousand_strings_arrive_byte_by_byte_in_every_context(openssh: SshServer) -> None:
    sent = 0
    with asyncio.Runner() as runner:
        transport = SshTransport()

        @settings(max_examples=STRINGS // IN_ONE_RUN, deadline=None)
        @given(st.lists(TEXTS, min_size=IN_ONE_RUN, max_size=IN_ONE_RUN))
        def arrive(values: list[str]) -> None:
            nonlocal sent
            sent += len(values)
            runner.run(assert_arrive(transport, openssh, values))

        try:
            arrive()
            assert transport.open_way(target_of(openssh).key)
        finally:
            runner.run(transport.close())
    assert sent >= STRINGS


async def assert_arrive(transport: SshTransport, server: SshServer, values: list[str]) -> None:
    """As macros in a script, as its arguments and environment, and as arguments of a program."""
    target = target_of(server)
    names = {f"v{number}": value for number, value in enumerate(values)}
    lines = ['show() { printf \'%s\\0\' "$#" "$@"; }', 'show "$@"']
    lines += [f'show "$ENV_{name}"' for name in names]
    lines += ["show " + word.replace("{}", f"{{{{args.{name}}}}}") for name in names for word, _ in CONTEXTS]
    rendered = render_shell("\n".join(lines), Values({"args": dict(names)}), "sh")
    env = {**rendered.env, **{f"ENV_{name}": value for name, value in names.items()}}
    end, told = await run(transport, target, rendered.text, args=tuple(values), env=env)
    words = [*values, *(printed.replace("{}", value) for value in values for _, printed in CONTEXTS)]
    expected = [str(len(values)), *values] + [part for word in words for part in ("1", word)]
    assert (end.exit_code, told.out.decode().split("\0")[:-1]) == (0, expected), told.err

    end, told = await run(transport, target, None, argv=("printf", "%s\\0", *values))  # type: ignore[arg-type]
    assert (end.exit_code, told.out.decode().split("\0")[:-1]) == (0, values), told.err
