from __future__ import annotations

import pytest

from iotjobs.domain.macros import MacroError, check_shell

ALLOWED = [
    "ls {{id}}", "/opt/{{id}}/run {{id}}", "$dir/bin/tool {{id}}", "x={{id}}", "x={{id}} ls", "export X={{id}} Y=1", "local x={{id}}", "readonly X='{{id}}'",
    "[ {{id}} = a ]", "[ a = {{id}} ]", "[ -n {{id}} ]", "[ ! -f {{id}} ]", "[ {{id}} ]", "test {{id}} -gt 5", "[ {{id}} = a -o b = {{id}} ]", "[ {{id}} = y ] 2>/dev/null",
    "printf '%s' {{id}}", "printf -- '%s' {{id}}", "set -- {{id}}", "sh -c 'echo \"$1\"' sh {{id}}", "bash -eu -o pipefail -c 'x' _ {{id}}",
    "sudo -u bob systemctl restart {{id}}", "sudo find . -name {{id}}", "find . -name {{id}}", "find {{id}} -type f", "env A=1 tool {{id}}", "exec tool {{id}}", "command ls {{id}}",
    "python3 /opt/tool.py --name {{id}}", "node app.js {{id}}", "awk '{print}' {{id}}", "x={{id}} awk 'BEGIN { print ENVIRON[\"x\"] }'",
    "grep -c {{id}} f", "systemctl restart ssh {{id}}", "echo eval {{id}}", "cd {{id}}", "kill -9 {{id}}", "time ls {{id}}", "trap - INT; echo {{id}}",
]  # fmt: skip

# The mark ^ stands before the macro that is refused.
REFUSED = [
    "^{{id}}", "'^{{id}}' x", "a^{{id}}", "/opt/^{{id}}", "^{{id}}/run", "^{{id}}=1", "x=1 ^{{id}}", "if ^{{id}}; then :; fi", "a && ^{{id}}", "$(^{{id}})", "! ^{{id}}", "time ^{{id}}",
    "eval ^{{id}}", "eval \"echo '^{{id}}'\"", 'eval "$(echo ^{{id}})"', "'eval' ^{{id}}", "e\\val ^{{id}}", "trap 'rm ^{{id}}' EXIT", "let x=^{{id}}", ". ^{{id}}", "source ./^{{id}}",
    "sh -c 'echo ^{{id}}'", "sh -ec 'echo ^{{id}}'", "sh -e -c \"^{{id}}\"", "bash -o pipefail -c ^{{id}}", "/bin/sh -c ^{{id}}", "sh ^{{id}}", "sh $opts ^{{id}}", "$SHELL -c ^{{id}}", "$x/y$z -c ^{{id}}",
    "sudo sh -c ^{{id}}", "find . -exec sh -c 'rm ^{{id}}' \\;", "find . -exec sh -c x sh a \\; -exec sh -c '^{{id}}' \\;", "xargs sh -c 'a ^{{id}}'", "busybox ash -c ^{{id}}", "docker exec web sh -c '^{{id}}'",
    "su bob -c 'x ^{{id}}'", "ssh host 'x ^{{id}}'", "sudo ssh host ^{{id}}", "ssh ^{{id}} uptime", "watch 'x ^{{id}}'", "su ^{{id}}",
    "awk '/^{{id}}/'", "awk -v x=1 '^{{id}}'", "sed 's/a/^{{id}}/' f", "sed -i s/a/b/ ^{{id}}", "perl -e '^{{id}}'", "python3 -c '^{{id}}'", "python3.11 -c '^{{id}}'", "perl -e 1 ^{{id}}", "node $f ^{{id}}", "ruby ^{{id}}",
    "command ^{{id}} x", "builtin eval ^{{id}}", "command eval ^{{id}}", "exec ^{{id}}", "env ^{{id}}", "sudo -E ^{{id}}", "$SUDO ^{{id}}", "$SUDO eval ^{{id}}", "$SUDO ssh h ^{{id}}", "nohup ^{{id}}",
    "read ^{{id}}", "unset ^{{id}}", "mapfile -t ^{{id}}", "getopts ab ^{{id}}", "wait ^{{id}} x", "printf ^{{id}}", 'printf "a ^{{id}}\\n"', "printf -v ^{{id}} x", "printf -v x '%s' ^{{id}}", "printf $f ^{{id}}",
    "[ ^{{id}} x ]", "[ -v ^{{id}} ]", "test -v ^{{id}}", "[ -R ^{{id}} ]", "[ ^{{id}} \"$x\" ]", "[ ! ^{{id}} ]", "[ $op ^{{id}} ]", "set ^{{id}}", "set -e ^{{id}}",
    "export ^{{id}}", "export ^{{id}}=1", "export A^{{id}}=1", "export 'A'=^{{id}}", "declare -i x=^{{id}}", "declare -n x=^{{id}}", "local $o x=^{{id}}", "typeset -ri x; x=^{{id}}", "command declare -i x; x=^{{id}}",
    "PS4=^{{id}}", "PATH=^{{id}} ls", "BASH_ENV=^{{id}}", "RANDOM=^{{id}}", "export PROMPT_COMMAND=^{{id}}", "IFS=^{{id}}", "LD_PRELOAD=^{{id}}", "alias x=^{{id}}",
]  # fmt: skip


@pytest.mark.parametrize("text", ALLOWED)
def test_a_value_may_be_a_plain_argument(text: str) -> None:
    check_shell(text, "sh")


@pytest.mark.parametrize("marked", REFUSED)
def test_a_value_that_would_be_read_as_a_program_or_a_name_is_refused_at_its_place(marked: str) -> None:
    position = marked.index("^{{")
    with pytest.raises(MacroError) as caught:
        check_shell(marked.replace("^{{", "{{"), "sh")
    assert (caught.value.position, caught.value.name) == (position, "id")
