"""Who may ask: the API keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from .errors import RequestError

NOBODY = "open"
"""The owner of all sessions where no key is asked for."""


class Keys:
    """The keys of which a client must know one.

    Parameters
    ----------
    keys : sequence of str
        The keys. Without any, everybody may ask.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def owner(self, authorization: str | None) -> str:
        """Return who asks: a name for the key in the header `Authorization`, which does not tell the key.

        Raises
        ------
        RequestError
            When it is none of the keys.
        """
        if not self._keys:
            return NOBODY
        scheme, _, given = (authorization or "").partition(" ")
        key = given.strip().encode()
        matches = [hmac.compare_digest(key, each) for each in self._keys]  # all of them, in the same time
        if scheme.lower() != "bearer" or not any(matches):
            raise RequestError(
                401, "The API key is missing or wrong; send the header Authorization: Bearer KEY.", "invalid_api_key"
            )
        return hashlib.sha256(b"attention_sinks owner" + key).hexdigest()[:32]

    def owner_at_page(self, authorization: str | None) -> str:
        """Return who looks at the page, for whom a browser sends the key as a password, with any name.

        Raises
        ------
        RequestError
            When it is none of the keys.
        """
        scheme, _, given = (authorization or "").partition(" ")
        try:
            _, _, key = base64.b64decode(given.strip()).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            key = ""
        return self.owner(f"Bearer {key if scheme.lower() == 'basic' else ''}")
