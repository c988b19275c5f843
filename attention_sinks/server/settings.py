"""What an operator sets, on the command line or in the environment."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PositiveInt = Annotated[int, Field(ge=1)]


class ServerSettings(BaseSettings):
    """How the server listens, and what a client may have of it.

    Each can be set in the environment as well: `ATTENTION_SINKS_PORT=80`, `ATTENTION_SINKS_API_KEYS='["…"]'`.

    Attributes
    ----------
    host, port : str, int
        Where it listens. By default no other machine reaches it.
    api_keys : list of str
        The keys of which a client must know one. Sessions belong to the key that made them.
    no_auth : bool
        Whether other machines may ask without a key.
    max_tokens : int
        The most new tokens of an answer.
    usual_tokens : int
        The most new tokens of an answer whose request does not say.
    max_body_bytes : int
        The largest body of a request.
    body_seconds : float
        How long a body may take to come.
    request_seconds : float
        How long an answer may take, waiting included.
    sessions_per_key : int
        How many sessions a client has at most.
    session_expiry : float or None
        Seconds after their last turn for which sessions are kept.
    max_connections : int
        How many requests there may be at once; others get 503.
    page : bool
        Whether there is a page for a browser.
    """

    model_config = SettingsConfigDict(env_prefix="ATTENTION_SINKS_", extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_keys: list[Annotated[SecretStr, Field(min_length=1)]] = []
    no_auth: bool = False
    max_tokens: PositiveInt = 8192
    usual_tokens: PositiveInt = 1024
    max_body_bytes: PositiveInt = 8 << 20
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    request_seconds: Annotated[float, Field(gt=0)] = 600.0
    sessions_per_key: PositiveInt = 256
    session_expiry: Annotated[float, Field(gt=0)] | None = None
    max_connections: PositiveInt = 512
    page: bool = True

    @model_validator(mode="after")
    def _is_guarded(self) -> ServerSettings:
        if not (self.is_local or self.api_keys or self.no_auth):
            raise ValueError(
                f"host={self.host!r} lets other machines ask; set a key with --api-key or ATTENTION_SINKS_API_KEYS, or "
                "say --no-auth"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether no other machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys(self) -> list[str]:
        return [key.get_secret_value() for key in self.api_keys]


def settings_from(**given: Any) -> ServerSettings:
    """Return the settings that are given, and those of the environment for what is None.

    Raises
    ------
    ValidationError
        When one of them is wrong. It is a ValueError.
    """
    return ServerSettings(**{name: value for name, value in given.items() if value is not None})
