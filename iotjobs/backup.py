"""`iotjobs backup` and `iotjobs restore`: a site in one file.

On SQLite the file is a database, on PostgreSQL an archive of `pg_dump`; everything of a site is in
the database, but its settings, what the broker holds, and the key that opens its secrets.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy import URL

from iotjobs.domain.errors import ConfigurationError, StorageFull, StoreUnavailable
from iotjobs.settings import Settings
from iotjobs.store import backups
from iotjobs.store.lock import take_lock
from iotjobs.store.migrations.migrate import migrate
from iotjobs.store.secrets import Secrets, load_or_make_key
from iotjobs.store.session import Store, open_store, postgres_url

_SQLITE, _POSTGRES = b"SQLite format 3\0", b"PGDMP"


class InTheWay(ConfigurationError):
    """Something is there already that must not be written over."""


def back_up(settings: Settings, file: Path, *, with_key: bool) -> list[str]:
    """Write the site, which may be running, into a new file; what to tell about it.

    Raises:
        InTheWay: the file is there.
        ConfigurationError: there is nothing to back up, or a program is missing.
        StorageFull, StoreUnavailable: it could not be done; no file is left.
    """
    os.umask(0o077)
    key = load_or_make_key(settings.key_file, may_make=False) if with_key else None
    with _new_file(file) as partial:
        if settings.database_url is None:
            database = settings.data_dir / "iotjobs.db"
            if not database.is_file():
                raise ConfigurationError(
                    f"there is no database in {settings.data_dir}: choose it with --data"
                )
            backups.copy_sqlite(database, partial)
        else:
            url = postgres_url(settings.store_url)
            _run("pg_dump", url, "--format=custom", f"--file={partial}")
        if key is not None:
            with _new_file(_key_beside(file)) as copied:
                copied.write_bytes(settings.key_file.read_bytes())
    if with_key:
        return [f"backup: {file}", f"key: {_key_beside(file)}; whoever has both can read every secret"]
    return [
        f"backup: {file}",
        f"the key {settings.key_file} is not in it: keep a copy of that elsewhere (or use --with-key), "
        "since without it stored credentials cannot be read",
    ]


def restore(settings: Settings, file: Path, *, moved: bool) -> list[str]:
    """Make a site of a backup, where none is; what to tell about it.

    Args:
        settings: of the new site.
        file: of `back_up`.
        moved: the old site was stopped before the backup and has not run since.

    Raises:
        AlreadyRunning: a server runs there.
        InTheWay: there is a site already.
        ConfigurationError: the file is no backup for this kind of database, or the key is another one's.
            A PostgreSQL database that holds rows by then is served by nobody.
        MigrationNeeded: it was made by a newer version.
    """
    os.umask(0o077)
    _check_kind(settings, file)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = take_lock(settings.data_dir / "lock")
    try:
        beside = _key_beside(file)
        source = settings.key_file if settings.key_file.exists() else beside if beside.exists() else None
        key = None if source is None else load_or_make_key(source, may_make=False)
        vault = None if key is None else Secrets(key)
        if settings.database_url is None:
            ended = _restore_sqlite(settings.data_dir / "iotjobs.db", file, vault, moved=moved)
        else:
            ended = _restore_postgres(settings.store_url, file, vault, moved=moved)
        if source == beside:
            with _new_file(settings.key_file) as copied:
                copied.write_bytes(beside.read_bytes())
    finally:
        os.close(lock)
    told = [f"restored: {file}"]
    if ended:
        told.append(
            f"{ended} jobs had not ended when the backup was made and may have run since: they are lost"
        )
    if source is None:
        told.append(f"put the key that was used with it at {settings.key_file} before the start")
    return told


def _check_kind(settings: Settings, file: Path) -> None:
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_SQLITE))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    is_sqlite, is_postgres = head == _SQLITE, head.startswith(_POSTGRES)
    if not (is_sqlite or is_postgres):
        raise ConfigurationError(f"{file} is no backup of iotjobs")
    if is_sqlite and settings.database_url is not None:
        raise ConfigurationError(f"{file} is a backup of SQLite: restore it without IOTJOBS_DATABASE_URL")
    if is_postgres and settings.database_url is None:
        raise ConfigurationError(f"{file} is a backup of PostgreSQL: set IOTJOBS_DATABASE_URL")


def _restore_sqlite(database: Path, file: Path, vault: Secrets | None, *, moved: bool) -> int:
    for old in sorted(database.parent.glob(f"{database.name}*")):
        raise InTheWay(f"there is a database already: move {old} (and its like) away first")
    with _new_file(database) as partial:
        try:
            shutil.copyfile(file, partial)
        except OSError as error:
            raise StorageFull(f"{file} could not be copied: {error.strerror}") from error
        backups.check_sqlite(partial)
        url = f"sqlite:///{partial}"
        migrate(url)
        return asyncio.run(_begin_life(url, vault, moved=moved))


def _restore_postgres(url: str, file: Path, vault: Secrets | None, *, moved: bool) -> int:
    asyncio.run(_begin_restore(url))
    _run("pg_restore", postgres_url(url), "--single-transaction", "--no-owner", "--no-privileges", str(file))
    migrate(url, restoring=True)
    return asyncio.run(_begin_life(url, vault, moved=moved, marked=True))


async def _begin_restore(url: str) -> None:
    async with _opened(url) as store:
        if not await store.write(backups.begin_restore):
            raise InTheWay("the database is not empty: make a new one (createdb) and name that")


async def _begin_life(url: str, vault: Secrets | None, *, moved: bool, marked: bool = False) -> int:
    async with _opened(url) as store:
        ended = await backups.begin_life(store, vault, moved=moved)
        if marked:
            await store.write(backups.end_restore)
        return ended


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


def _key_beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.key")


@contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """A place to write into; it becomes the file when that has succeeded, whole or not at all."""
    if file.exists():
        raise InTheWay(f"{file} is there already: choose another name, or move it away")
    if not file.parent.is_dir():
        raise ConfigurationError(f"there is no directory {file.parent}")
    with tempfile.TemporaryDirectory(prefix=".iotjobs-", dir=file.parent) as folder:
        partial = Path(folder) / file.name
        yield partial
        _sync(partial)
        partial.rename(file)
        _sync(file.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _run(program: str, url: URL, *options: str) -> None:
    """Run one of PostgreSQL's programs; the password goes by a file, where no other user sees it."""
    found = shutil.which(program)
    if found is None:
        raise ConfigurationError(f"{program} is not installed: apt-get install postgresql-client")
    with tempfile.TemporaryDirectory(prefix="iotjobs-") as folder:
        passwords = Path(folder) / "pgpass"
        passwords.touch(mode=0o600)
        escaped = (url.password or "").replace("\\", "\\\\").replace(":", "\\:")
        passwords.write_text(f"*:*:*:*:{escaped}\n")
        command = [found, f"--dbname={conninfo(url, passwords)}", *options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StoreUnavailable(f"{program} failed: {done.stderr.strip()[-1000:]}")


def conninfo(url: URL, passwords: Path) -> str:
    """A URL of ours in libpq's words, without its password."""
    query = {name: value for name, value in url.query.items() if isinstance(value, str)}
    given = {
        "host": url.host or query.get("host"),
        "port": url.port or query.get("port"),
        "user": url.username,
        "dbname": url.database,
        "sslmode": query.get("ssl"),
        "passfile": passwords,
        "application_name": "iotjobs backup",
    }
    quoted = (
        (name, str(value).replace("\\", "\\\\").replace("'", "\\'"))
        for name, value in given.items()
        if value is not None
    )
    return " ".join(f"{name}='{value}'" for name, value in quoted)
