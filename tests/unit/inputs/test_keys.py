from __future__ import annotations

import asyncssh
import pytest

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.keys import HOST_KEYS, check_private_key, host_key_lines

KEY = asyncssh.generate_private_key("ssh-ed25519")
PUBLIC = KEY.export_public_key().decode().strip()


def test_host_keys_lose_comments_and_keep_markers() -> None:
    text = f"# found by hand\r\n {PUBLIC} a comment\n\n@revoked {PUBLIC}\n@cert-authority {PUBLIC}"

    assert host_key_lines(text, field="f") == f"{PUBLIC}\n@revoked {PUBLIC}\n@cert-authority {PUBLIC}"


@pytest.mark.parametrize(
    "text",
    [
        *("", "# nothing", "ssh-ed25519", "ssh-ed25519 AAAA", "host KEY", "@other KEY"),
        *("@cert-authority * KEY", "-----BEGIN PUBLIC-----", "KEY\n" * (HOST_KEYS + 1)),
    ],
)
def test_what_is_no_host_key_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        host_key_lines(text.replace("KEY", PUBLIC), field="ssh.host_key")
    assert refused.value.errors[0].field == "ssh.host_key"


@pytest.mark.parametrize("form", ["openssh", "pkcs8-pem"])
def test_private_keys_of_both_formats_are_read(form: str) -> None:
    check_private_key(KEY.export_private_key(form).decode(), None)


def test_an_encrypted_key_needs_its_passphrase() -> None:
    text = KEY.export_private_key("pkcs8-pem", passphrase="open sesame").decode()

    check_private_key(text, "open sesame")
    for wrong in (None, "open barley"):
        with pytest.raises(BadRequest) as refused:
            check_private_key(text, wrong)
        assert refused.value.errors[0].field == "passphrase"
        assert refused.value.__cause__ is None
        assert "barley" not in str(refused.value)
