"""Every setting, and the only place that reads the environment and `iotjobs.toml`.

Order: command line, `IOTJOBS_*`, `iotjobs.toml` in the working directory (or the file that
`IOTJOBS_CONFIG` names), the default. Secrets are masked wherever the settings are shown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from iotjobs.domain.errors import ConfigurationError
from iotjobs.domain.operations import DEFAULT_TIMEOUT_S


def _texts(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


_Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class IngestSetting(BaseModel):
    """A topic with `{thing}` or `{external_id}`, perhaps `{property}` or `{path}`, and what its messages are."""

    model_config = ConfigDict(extra="forbid")

    topic: str
    prefix: str = ""
    online: _Texts = ()
    offline: _Texts = ()
    ignore: bool = False


class Settings(BaseSettings):
    """What a site can choose. Names in the environment are upper case with `IOTJOBS_` before them."""

    model_config = SettingsConfigDict(env_prefix="IOTJOBS_", extra="forbid", env_ignore_empty=True)
    toml_file: ClassVar[Path] = Path("iotjobs.toml")

    data_dir: Path = Field(
        Path("data"), description="directory of the database, the keys and the broker's files"
    )
    host: str = Field("127.0.0.1", description="address that the HTTP server binds")
    port: int = Field(8000, ge=0, le=65535, description="its port; 0 takes a free one")
    database_url: SecretStr | None = Field(
        None, description="`postgresql://USER:PASSWORD@HOST/DB`; without it SQLite in the data directory"
    )
    admin_token: SecretStr | None = Field(
        None,
        description="token of the first administrator, `<n>-<letters and digits>`; without it one is made",
    )
    secret_key_file: Path | None = Field(
        None, description="file with 32 bytes in base64 that encrypt credentials; required with PostgreSQL"
    )
    mqtt_url: SecretStr | None = Field(
        None,
        description="`mqtt://` or `mqtts://USER:PASSWORD@HOST:PORT` of your broker; without it ours is started",
    )
    mqtt_ca_file: Path | None = Field(None, description="CA certificates for `mqtts://`")
    mqtt_bind: str = Field("127.0.0.1", description="address that our broker binds")
    mqtt_port: int = Field(1883, ge=1, le=65535, description="port of our broker")
    report_rate: float = Field(
        10.0,
        ge=0,
        description="reports a second of one device over MQTT, its `online` and `offline` among them, "
        "five times as many in a burst; 0: any number",
    )
    ingest: tuple[IngestSetting, ...] = Field(
        (),
        description="topics of other makers that are reports or words of a connection: a list of "
        '`{"topic": "zigbee2mqtt/{external_id}"}`, see [MQTT](mqtt.md#topics-of-other-makers)',
    )
    allow_local: bool = Field(False, description="let operations run on this host (`via: local`)")
    known_hosts_file: Path | None = Field(
        None, description="OpenSSH known_hosts that is trusted for every object"
    )
    ssh_host_ca_file: Path | None = Field(
        None,
        description="public keys, one a line, whose host certificates are trusted where no host key is on record",
    )
    jobs_at_once: int = Field(500, ge=1, le=10_000, description="attempts under way at the same time")
    default_timeout_s: float = Field(
        DEFAULT_TIMEOUT_S,
        gt=0,
        le=7 * 24 * 3600,
        description="seconds that an attempt may take where neither the call nor the operation says `timeout_s`",
    )
    ssh_idle_s: float = Field(60.0, gt=0, description="seconds that an unused SSH connection stays open")
    ssh_connect_timeout_s: float = Field(
        10.0, gt=0, description="seconds for connecting and logging in over SSH"
    )
    ssh_agent_path: str | None = Field(
        default_factory=lambda: os.environ.get("SSH_AUTH_SOCK"),
        description="socket of the SSH agent for credentials of kind ssh_agent; else SSH_AUTH_SOCK",
    )
    ssh_keepalive_s: float = Field(
        5.0, gt=0, description="seconds between SSH keepalives; three unanswered end it"
    )
    output_cap_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, description="bytes kept of one attempt's output: its head and its tail"
    )
    keep_output_days: float = Field(
        30.0, gt=0, description="days that output is kept behind the end of its job; the record stays"
    )
    keep_output_bytes: int = Field(
        10 * 1024**3, ge=0, description="bytes of output kept of all ended jobs; the oldest goes first"
    )
    keep_logs_days: float = Field(30.0, gt=0, description="days that the log entries of jobs are kept")
    keep_jobs_days: float | None = Field(
        None,
        ge=1,
        description="days that ended jobs are kept, with all that is known of them; none: for ever",
    )
    keep_history_days: float = Field(7.0, gt=0, description="days that the values of properties are kept")
    keep_history_values: int = Field(
        2_000_000, ge=0, description="values of properties kept at most; the oldest go first"
    )
    keep_traces_days: float = Field(
        30.0,
        gt=0,
        description="days that changes of state (and the last one before) and the decisions of triggers are kept",
    )
    stop_grace_s: float = Field(30.0, ge=0, description="seconds that running jobs may go on after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )
    log_style: Literal["lines", "json"] = Field("lines", description="form of the log on stderr")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, file: see the module."""
        file = Path(os.environ.get("IOTJOBS_CONFIG") or cls.toml_file)
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file))

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'iotjobs.db'}"

    @property
    def key_file(self) -> Path:
        """The file with the key that encrypts secrets."""
        return self.secret_key_file or self.data_dir / "secret.key"


def load(**given: Any) -> Settings:
    """The settings in force; `given` (the command line) wins, members that are None are left out.

    Raises:
        ConfigurationError: names each wrong setting.
    """
    named = os.environ.get("IOTJOBS_CONFIG")
    if named and not Path(named).is_file():
        raise ConfigurationError(f"IOTJOBS_CONFIG: there is no file {named}")
    _refuse_unknown()
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except (ValidationError, ValueError) as error:
        raise ConfigurationError(_said(error)) from error


# Read elsewhere: by the client and by the choice of the file itself.
_NOT_OURS = frozenset({"IOTJOBS_CONFIG", "IOTJOBS_URL", "IOTJOBS_TOKEN"})


def _refuse_unknown() -> None:
    """A misspelt setting must not be silently the default."""
    known = {f"IOTJOBS_{name.upper()}" for name in Settings.model_fields} | _NOT_OURS
    unknown = sorted(name for name in os.environ if name.startswith("IOTJOBS_") and name not in known)
    if unknown:
        raise ConfigurationError(f"unknown setting {', '.join(unknown)}: see docs/reference/settings.md")


def _said(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return f"iotjobs.toml: {error}"
    return "; ".join(
        f"setting {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()
    )
