"""The settings of the service, from flags, environment and file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SecretStr, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

PREFIX = "NEGVAE_SERVE_"
"""Prefix of the environment variables, which have the names of the settings in capitals."""


class ServiceSettings(BaseSettings):
    """The settings of one service.

    Attributes:
        host: address to listen on; the default accepts connections of this machine only.
        port: port to listen on; 0 takes a free one.
        allowed_hosts: names under which the service is reached beside localhost and addresses, with commas between.
        max_body: maximum size of a request's body, in bytes.
        max_pixels: maximum number of pixels that an encoded image may declare.
        max_batch: maximum number of images or rows in a request, and of those that are scored together.
        max_queue: maximum number of images or rows that wait; a request beyond it is answered with 503, or with 413 if
            it alone holds more.
        max_connections: maximum number of requests in progress; a request beyond it is answered with 503.
        timeout: time from the first byte of a request to its answer, in seconds.
        threads: number of threads that compute.
        resize: whether images of another size are resized where a request does not say.
        alarm_rate: probability of a false alarm of the drift monitor.
        api_key: key that requests must carry, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; None for no key.
        log_level: least severe messages that are logged; "warning" leaves out the line for each request.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: str = ""
    max_body: int = Field(64_000_000, ge=1_000)
    max_pixels: int = Field(16_000_000, ge=1, le=178_956_970)
    max_batch: int = Field(256, ge=1, le=65_536)
    max_queue: int = Field(2_048, ge=1)
    max_connections: int = Field(256, ge=1)
    timeout: float = Field(30.0, gt=0, le=86_400)
    threads: int = Field(1, ge=1)
    resize: bool = False
    alarm_rate: float = Field(0.01, gt=0, lt=1)
    api_key: SecretStr | None = Field(None, min_length=8)
    log_level: Literal["info", "warning"] = "info"

    @field_validator("api_key", mode="before")
    @classmethod
    def _only_what_a_header_holds(cls, key: Any) -> Any:
        """Take away the space around a key, such as the line's end in a mounted file, and refuse what is not ASCII."""
        if not isinstance(key, str):
            return key
        if not (key.strip().isascii() and key.strip().isprintable()):
            raise ValueError("must be of printable ASCII characters")
        return key.strip()


def read_settings(file: Path | None = None, **flags: Any) -> ServiceSettings:
    """Combine the settings: flags, the keyword arguments, come before the environment, and that before the file.

    Args:
        file: YAML file with a mapping from the names of settings to values; None for no file.

    Returns:
        The settings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a setting is unknown or has no valid value; the message says where it was set.
    """
    from_file: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file of settings")
        try:
            from_file = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not a YAML file ({' '.join(str(error).split())})") from None
        if not isinstance(from_file, dict):
            raise ValueError(f"{file}: expected a mapping from the names of settings to values")
        if unknown := [name for name in from_file if name not in ServiceSettings.model_fields]:
            raise ValueError(
                f"{file}: {unknown[0]!r} is no setting: there are {', '.join(ServiceSettings.model_fields)}"
            )
        if from_file.get("api_key", "") is None:  # as from a template whose variable was not set
            raise ValueError(f"{file}: api_key has no value: give a key, or leave the line out for a service without")
    environment = EnvSettingsSource(ServiceSettings)()
    try:
        return ServiceSettings(**{**from_file, **environment, **flags})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        where = f"--{name.replace('_', '-')}" if name in flags else f"{PREFIX}{name.upper()}"
        where = f"{file}: {name}" if name not in flags and name not in environment else where
        said = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {said[0].lower()}{said[1:]}") from None
