from __future__ import annotations

import inspect
import socket
from pathlib import Path

import asyncssh
import pytest

from iotjobs.domain.errors import (
    BadAnswer,
    ConfigurationError,
    CredentialsRefused,
    DeliveryError,
    DeviceUnreachable,
    HostKeyChanged,
    HostKeyUnknown,
    LinkLost,
)
from iotjobs.transports.ssh import SshCredential, SshTarget
from iotjobs.transports.ssh_trust import (
    ENCRYPTION_ALGS,
    HOST_CERT_ALGS,
    HOST_KEY_ALGS,
    KEX_ALGS,
    MAC_ALGS,
    SIGNATURE_ALGS,
    TrustStore,
    delivery_error,
    read_authorities,
)

KEY = asyncssh.generate_private_key("ssh-ed25519")
LINE = KEY.export_public_key().decode().strip()


def _exported() -> list[type[Exception]]:
    """Every error class that asyncssh exports."""
    found = [getattr(asyncssh, name) for name in dir(asyncssh)]
    return sorted(
        {one for one in found if inspect.isclass(one) and issubclass(one, Exception)},
        key=lambda one: one.__name__,
    )


def _made(kind: type[Exception]) -> Exception:
    """One of these, whatever its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "why")
    return error


EXPECTED = {
    "PermissionDenied": CredentialsRefused,
    "IllegalUserName": CredentialsRefused,
    "PasswordChangeRequired": CredentialsRefused,
    "KeyImportError": CredentialsRefused,
    "KeyEncryptionError": CredentialsRefused,
    "KeyExportError": CredentialsRefused,
    "KeyGenerationError": CredentialsRefused,
    "ConfigParseError": CredentialsRefused,
    "HostKeyNotVerifiable": HostKeyChanged,
    "KeyExchangeFailed": BadAnswer,
    "MACError": BadAnswer,
    "CompressionError": BadAnswer,
    "ProtocolError": BadAnswer,
    "ProtocolNotSupported": BadAnswer,
    "ServiceNotAvailable": BadAnswer,
}


@pytest.mark.parametrize("kind", _exported())
@pytest.mark.parametrize("sent", [False, True])
def test_every_exported_error_becomes_one_of_ours(kind: type[Exception], sent: bool) -> None:
    error = delivery_error(_made(kind), "host:22", sent=sent)
    assert isinstance(error, DeliveryError)
    assert type(error) is EXPECTED.get(kind.__name__, LinkLost if sent else DeviceUnreachable)
    assert error.maybe_executed is sent
    assert "host:22" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        TimeoutError(),
        socket.gaierror(-2, "Name or service not known"),
        OSError("x"),
        BrokenPipeError(),
    ],
)
def test_a_socket_error_before_the_command_left_is_unreachable_and_retryable(error: Exception) -> None:
    ours = delivery_error(error, "host:22", sent=False)
    assert type(ours) is DeviceUnreachable
    assert ours.retryable
    assert not ours.maybe_executed


def test_no_algorithm_is_sha1_and_asyncssh_knows_all() -> None:
    everything = (*KEX_ALGS, *ENCRYPTION_ALGS, *MAC_ALGS, *HOST_KEY_ALGS, *HOST_CERT_ALGS, *SIGNATURE_ALGS)
    assert not [name for name in everything if "sha1" in name or name == "ssh-rsa" or "dss" in name]
    options = asyncssh.SSHClientConnectionOptions(
        config=None,
        client_keys=None,
        kex_algs=KEX_ALGS,
        encryption_algs=ENCRYPTION_ALGS,
        mac_algs=MAC_ALGS,
        signature_algs=SIGNATURE_ALGS,
        server_host_key_algs=[*HOST_CERT_ALGS, *HOST_KEY_ALGS],
    )
    assert options.kex_algs[0] == b"curve25519-sha256"
    assert options.encryption_algs[:2] == [b"aes128-gcm@openssh.com", b"chacha20-poly1305@openssh.com"]


def _target(*host_keys: str) -> SshTarget:
    login = SshCredential(id="c", private_key="KEY TEXT", passphrase="PHRASE", password="WORD")
    return SshTarget(key="o", host="::1", username="u", credential=login, host_keys=host_keys)


def test_secrets_are_in_no_repr() -> None:
    shown = repr(_target(LINE))
    assert not [secret for secret in ("KEY TEXT", "PHRASE", "WORD") if secret in shown]


def test_an_address_is_written_as_people_do() -> None:
    assert _target().address == "[::1]:22"


def test_known_hosts_are_three_lists_and_never_none() -> None:
    trust = TrustStore().of(_target(LINE, f"@cert-authority {LINE}", f"@revoked {LINE}"))
    public = KEY.convert_to_public()
    assert trust.known_hosts == ([public], [public], [public])
    assert trust.host_key_algs[0] == "ssh-ed25519-cert-v01@openssh.com"


def test_nothing_on_record_is_unknown() -> None:
    for lines in ((), (f"@revoked {LINE}",)):
        with pytest.raises(HostKeyUnknown):
            TrustStore().of(_target(*lines))


def test_the_kind_of_a_pinned_key_is_asked_for_first() -> None:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_public_key().decode()
    assert TrustStore().of(_target(rsa)).host_key_algs[:2] == ["rsa-sha2-512", "rsa-sha2-256"]


def test_an_authority_of_the_site_stands_in_where_nothing_is_on_record() -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    authority = other.export_public_key().decode()
    store = TrustStore(host_authorities=(authority,))

    assert store.of(_target()).authorities == (other.convert_to_public(),)
    assert store.of(_target(LINE)).authorities == ()
    assert store.of(_target(f"@cert-authority {LINE}")).authorities == (KEY.convert_to_public(),)
    assert store.of(_target(f"@revoked {LINE}")).revoked == (KEY.convert_to_public(),)


def test_the_file_of_authorities_holds_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "authorities"
    file.write_text(f"# the plant's\n\n{LINE} comment\n  {LINE}\n")

    assert read_authorities(file) == (f"{LINE} comment", LINE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"", "holds no public key"),
        (b"# only this\n", "holds no public key"),
        (f"{LINE}\n@cert-authority * {LINE}\n".encode(), "line 2 of"),
        (KEY.export_private_key(), "line 1 of"),
        (b"ssh-ed25519 AAAA\n", "line 1 of"),
        (b"\xff\xfe", "cannot be read"),
    ],
    ids=["missing", "empty", "comments", "known_hosts", "private key", "cut", "not text"],
)
def test_a_file_of_authorities_that_is_none_is_refused_and_not_repeated(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "authorities"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=said) as refused:
        read_authorities(file)

    assert str(refused.value).startswith("IOTJOBS_SSH_HOST_CA_FILE: ")
    assert "AAAA…" in str(refused.value) or "AAAA" not in str(refused.value)
    assert "PRIVATE" not in str(refused.value)
