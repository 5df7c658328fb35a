"""Checks SSH keys that people send in, before they are kept.

No message of ours repeats any part of a private key or a passphrase.
"""

from __future__ import annotations

import asyncssh

from iotjobs.domain.errors import BadRequest

HOST_KEYS = 16  # lines of one object: a host has four kinds of keys, an authority one or two
_MARKERS = ("@cert-authority", "@revoked")


def host_key_lines(text: str, *, field: str) -> str:
    """Trusted host keys, one a line, without comments and blank lines.

    Args:
        text: OpenSSH public keys, or `@cert-authority KEY`, or `@revoked KEY`; without host patterns.
        field: for the error.

    Raises:
        BadRequest: a line is none of these; says which.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker, words = (words[:1], words[1:]) if words[0] in _MARKERS else ([], words)
        try:
            if len(words) < 2:
                raise asyncssh.KeyImportError("incomplete")
            asyncssh.import_public_key(" ".join(words[:2]))
        except ValueError as error:
            raise BadRequest(
                f"line {number} is no host key: give lines such as `ssh-ed25519 AAAA…`, "
                "or `@cert-authority ssh-ed25519 AAAA…`, without a host name before them",
                field=field,
            ) from error
        lines.append(" ".join([*marker, *words[:2]]))
    if not lines:
        raise BadRequest("at least one host key is needed; null trusts none", field=field)
    if len(lines) > HOST_KEYS:
        raise BadRequest(f"more than {HOST_KEYS} host keys", field=field)
    return "\n".join(lines)


def check_private_key(text: str, passphrase: str | None) -> None:
    """Refuse a private key that could not be used later.

    Takes as long as the key's own derivation function asks for: not for the event loop.

    Raises:
        BadRequest: it cannot be read, or not with this passphrase; names the field.
    """
    try:
        asyncssh.import_private_key(text, passphrase)
    except ValueError as error:
        field, message = _what_is_wrong(str(error).lower(), passphrase)
        raise BadRequest(message, field=field) from None


def _what_is_wrong(said: str, passphrase: str | None) -> tuple[str, str]:
    """The field and our words for what asyncssh said; it has one error for everything."""
    if "bcrypt" in said:
        return "private_key", (
            "this server cannot open encrypted keys in OpenSSH's own format (it lacks bcrypt): "
            "convert a copy with `ssh-keygen -p -m PKCS8 -f FILE`, or send it without a passphrase"
        )
    if passphrase is None and "passphrase" in said:
        return "passphrase", "the private key is encrypted: give its passphrase"
    if "decrypt" in said or "passphrase" in said:
        return "passphrase", "the passphrase does not open the private key"
    return "private_key", "the private key cannot be read: give the whole file, in OpenSSH or PEM format"
