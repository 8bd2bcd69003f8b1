"""Who may tell the operator of alerts: whoever bears the token, or has a client certificate.

Whoever may do that can take the traffic from every canary. So nobody may until a token is there, or
a certificate authority for clients.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from dataclasses import dataclass
from pathlib import Path

from kvquant.config import ConfigError

SHORTEST = 16
"""Characters of the shortest token that is taken."""

LONGEST = 4096
"""Bytes of a token's file that are read."""

CERTIFICATE, KEY = "tls.crt", "tls.key"


@dataclass(frozen=True, slots=True)
class Access:
    """Checks credentials. The token is read at each look, because Secrets are changed in place.

    Attributes:
        token_file: File that holds the token; None: there is none.
        tls_folder: Folder with certificate and key; None: no TLS.
        client_ca: File with the authorities of which clients must have a certificate; None: they
            need none.
    """

    token_file: Path | None = None
    tls_folder: Path | None = None
    client_ca: Path | None = None

    def refusal(self, authorization: str | None, *, certified: bool) -> str | None:
        """Return why a request may tell nothing; None when it may.

        Args:
            authorization: The request's header of that name.
            certified: Whether its connection has shown a certificate that was verified.
        """
        token = self._token()
        if (problem := self._unusable(token)) is not None:
            return problem
        if token is None:
            return None if certified else "a client certificate is missing"
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not _equal(given.strip(), token):
            return "the bearer token is missing or wrong"
        return None

    def problem(self) -> str | None:
        """Return why nobody can be heard, whatever they show; None when somebody can."""
        return self._unusable(self._token())

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS connections are made with; None: no TLS.

        Raises:
            ConfigError: Certificate, key or authority are missing or unusable.
        """
        if self.tls_folder is None:
            if self.client_ca is not None:
                raise ConfigError(
                    "KVQUANT_ALERTS_CLIENT_CA needs TLS: set KVQUANT_ALERTS_TLS_FOLDER, too"
                )
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self.load(context)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            raise ConfigError(
                f"KVQUANT_ALERTS_TLS_FOLDER={self.tls_folder}: {CERTIFICATE} and {KEY} must be a "
                "certificate with its key, and KVQUANT_ALERTS_CLIENT_CA, if set, a file of "
                f"certificates: {error}"
            ) from error
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Load certificate and key, for connections from now on.

        Raises:
            OSError: They cannot be read, or do not fit.
        """
        assert self.tls_folder is not None  # noqa: S101 - there is no context without it
        context.load_cert_chain(self.tls_folder / CERTIFICATE, self.tls_folder / KEY)

    def _unusable(self, token: str | None) -> str | None:
        if token is None:
            if self.token_file is None and self.client_ca is not None:
                return None
            return "no token is configured: write one to the file in KVQUANT_ALERTS_TOKEN_FILE"
        if len(token) < SHORTEST:
            return f"the configured token has fewer than {SHORTEST} characters"
        return None

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            with self.token_file.open("rb") as file:
                return file.read(LONGEST).decode(errors="replace").strip() or None
        except OSError:
            return None


def _equal(given: str, token: str) -> bool:
    # Of hashes, so that not even the length can be measured.
    one, other = (hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, token))
    return hmac.compare_digest(one, other)
