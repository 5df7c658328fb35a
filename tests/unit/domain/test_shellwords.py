from __future__ import annotations

import pytest

from iotjobs.domain.macros import MacroError, Values, check_shell, render_shell

ALLOWED = [
    ("{{id}}", '"${IJ_0}"'),
    ("a{{id}}b", 'a"${IJ_0}"b'),
    ('"a {{id}}"', '"a ${IJ_0}"'),
    ("'a {{id}} b'", "'a '\"${IJ_0}\"' b'"),
    ("\"'{{id}}'\"", "\"'${IJ_0}'\""),
    ("'\"{{id}}\"'", "'\"'\"${IJ_0}\"'\"'"),
    ('"$(echo {{id}})"', '"$(echo "${IJ_0}")"'),
    ('"$(echo \'{{id}}\' "{{id}}")"', '"$(echo \'\'"${IJ_0}"\'\' "${IJ_0}")"'),
    ("$( (a) ; b ) {{id}}", '$( (a) ; b ) "${IJ_0}"'),
    ("$# ${#x} ${x%.*} ${x#a} {{id}}", '$# ${#x} ${x%.*} ${x#a} "${IJ_0}"'),
    ("$x{{id}} $$ $1{{id}} ${x}{{id}}", '$x"${IJ_0}" $$ $1"${IJ_0}" ${x}"${IJ_0}"'),
    ('"$x{{id}}y"', '"$x${IJ_0}y"'),
    ("$((1 + (2 * x))) {{id}}", '$((1 + (2 * x))) "${IJ_0}"'),
    ("`date` {{id}}", '`date` "${IJ_0}"'),
    ('\\\\{{id}} \\" {{id}}', '\\\\"${IJ_0}" \\" "${IJ_0}"'),
    ('"\\\\{{id}}\\" {{id}}"', '"\\\\${IJ_0}\\" ${IJ_0}"'),
    ("$'a\\tb' {{id}}", "$'a\\tb' \"${IJ_0}\""),
    ('"$\'" {{id}}', '"$\'" "${IJ_0}"'),
    ("a#{{id}} ~/{{id}} *{{id}}*", 'a#"${IJ_0}" ~/"${IJ_0}" *"${IJ_0}"*'),
    ('"{a,{{id}}}"', '"{a,${IJ_0}}"'),
    ("{{id}}1", '"${IJ_0}"1'),
]

# The mark ^ stands before the macro that is refused.
REFUSED = [
    "\\^{{id}}", '"\\^{{id}}"', "$^{{id}}", '"$^{{id}}"', "`a ^{{id}}`", '`echo "a"` ^{{id}}', '"`a ^{{id}}`"',
    "$((^{{id}}))", "$((1 + ^{{id}}))", '"$((^{{id}}))"', "$((a) | b) ^{{id}}", "$[1] ^{{id}}", "$[^{{id}}]", '"$[^{{id}}]"',
    "${x:-^{{id}}}", '"${x:-^{{id}}}"', "${^{{id}}}", "${x[^{{id}}]}", '${x:-"a"} ^{{id}}', "${x:-'}'} ^{{id}}",
    "$'^{{id}}'", "$'a\\'b' ^{{id}}", '$"^{{id}}"', '$"a" ^{{id}}', "{a,^{{id}}}", "^{{id}}{a,b}", "a[^{{id}}]", "~^{{id}}",
    "'a ^{{id}}", '"a ^{{id}}', "a\\\n^{{id}}", "$\\\n(a) ^{{id}}", '"$\\\n(a)" ^{{id}}', "^{{id}}\\",
]  # fmt: skip


@pytest.mark.parametrize(("word", "expected"), ALLOWED)
def test_each_quotation_gets_its_own_form(word: str, expected: str) -> None:
    assert render_shell("echo " + word, Values({"id": "x"})).text == "echo " + expected


@pytest.mark.parametrize("marked", REFUSED)
@pytest.mark.parametrize("interpreter", ["sh", "bash"])
def test_where_quoting_would_be_wrong_a_macro_is_refused_at_its_place(marked: str, interpreter: str) -> None:
    text = "echo " + marked
    position = text.index("^{{")
    with pytest.raises(MacroError) as caught:
        check_shell(text.replace("^{{", "{{"), interpreter)
    assert (caught.value.position, caught.value.name) == (position, "id")
