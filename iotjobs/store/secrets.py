"""Keeps secrets sealed: AES-256-GCM under one key of the site, and the canary that proves the key.

What is sealed is bound to its place by a context: a row's ciphertext copied into another row does
not open there. The key never enters the database, so a copy of the database alone opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, insert, select, text

from iotjobs.domain.errors import ConfigurationError, EngineError
from iotjobs.store import tables
from iotjobs.store.writer import Transaction

KEY_BYTES = 32
_NONCE_BYTES = 12  # what GCM is specified for
_TAG_BYTES = 16
_VERSION = b"\x01"  # of the sealed form: version, nonce, ciphertext with tag

_CANARY = "canary"
_CANARY_TEXT = b"iotjobs canary"


class SecretUnreadable(EngineError):
    """A sealed value does not open: another key, another context, or damage."""


class Secrets:
    """Seals and opens under one key. Safe to use from any thread."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigurationError(f"the secret key has {len(key)} bytes, {KEY_BYTES} are needed")
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return "Secrets(…)"

    def seal(self, data: bytes, context: str) -> bytes:
        """Encrypt, bound to a context such as `credential:<id>`."""
        nonce = token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, data, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """The inverse of `seal`.

        Raises:
            SecretUnreadable: another key or context, or a byte that changed.
        """
        if sealed[:1] != _VERSION or len(sealed) < 1 + _NONCE_BYTES + _TAG_BYTES:
            raise SecretUnreadable(f"what is stored for {context} is not a sealed value of this version")
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, context.encode())
        except InvalidTag as error:
            raise SecretUnreadable(f"the secret key does not open what is stored for {context}") from error


def load_or_make_key(path: Path | str, *, may_make: bool) -> bytes:
    """Read the key file (32 bytes, base64), or make one that only its owner can read.

    Raises:
        ConfigurationError: it is missing, readable by others, or holds no key; says the cure.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if may_make:
            return _make_key(path)
        raise ConfigurationError(
            f"the secret key file {path} does not exist: make it with "
            f"`(umask 077; openssl rand -base64 32 > {path})` and give every node the same one"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"the secret key file {path} cannot be read: {error.strerror}") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ConfigurationError(f"the secret key file {path} is not a plain file")
        if state.st_mode & 0o077:
            raise ConfigurationError(
                f"the secret key file {path} can be read or changed by others: chmod 600 {path}"
            )
        return _decode(os.read(descriptor, 1024), path)
    finally:
        os.close(descriptor)


def _decode(content: bytes, path: Path) -> bytes:
    try:
        key = base64.b64decode(content.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"the secret key file {path} does not hold {KEY_BYTES} bytes in base64: "
            "put the right file back; without it stored credentials cannot be read"
        )
    return key


def _make_key(path: Path) -> bytes:
    key = token_bytes(KEY_BYTES)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(key) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, path)  # whole or not at all, and never over a key that came first
        finally:
            fresh.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(f"the secret key file {path} cannot be made: {error.strerror}") from error
    return key


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_start(conn: Connection) -> None:
    """Let one node at a time do what only the first start of a site does, to the end of its transaction."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('iotjobs start', 0))"))


def check_canary(tx: Transaction, secrets: Secrets) -> None:
    """Seal a known text at the first start; open it at each later one.

    Raises:
        ConfigurationError: the key is not the one that this database's secrets were sealed with.
    """
    lock_start(tx.conn)
    site = tables.site
    stored = tx.conn.execute(select(site.c.value).where(site.c.name == _CANARY)).scalar_one_or_none()
    if stored is None:
        sealed = base64.b64encode(secrets.seal(_CANARY_TEXT, _CANARY)).decode()
        tx.conn.execute(insert(site), {"name": _CANARY, "value": sealed})
        return
    try:
        secrets.open(base64.b64decode(stored), _CANARY)
    except SecretUnreadable as error:
        raise ConfigurationError(
            "IOTJOBS_SECRET_KEY_FILE: the key file does not belong to this database; "
            "put back the one that was used with it"
        ) from error
