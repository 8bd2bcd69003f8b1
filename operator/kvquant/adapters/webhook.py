"""The receiver of notifications, named by the files of a mounted Secret.

Its address is a secret with many receivers (Slack's webhooks), so that it is in no message and no
log. The files are read for every request: a Secret that was changed counts from the next one on.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from kvquant.adapters import bounded
from kvquant.adapters.prometheus_secret import MountedSecret
from kvquant.errors import MetricsError, NotificationError

URL = "url"
TIMEOUT = 10.0
"""Seconds in which a receiver must have answered."""
LARGEST_ANSWER = 64 * 1024


class SecretWebhook:
    """Posts to the address in the file `url` of a folder.

    Beside it may lie what `MountedSecret` reads: `token`, `username` and `password`, `header.NAME`,
    `ca.crt`, `tls.crt` and `tls.key`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._secret = MountedSecret(folder)

    def post(self, body: bytes, content_type: str) -> None:
        """Send one notification; see `kvquant.ports.Webhook`."""
        url = self._url()
        try:
            credentials = self._secret.credentials()
        except MetricsError as error:
            raise NotificationError(str(error)) from None
        certificate, key = credentials.client or (None, None)
        pool = urllib3.PoolManager(
            cert_file=certificate, key_file=key, ca_certs=credentials.authority
        )
        try:
            answer = pool.request(
                "POST",
                url,
                body=body,
                headers={**credentials.headers, "Content-Type": content_type},
                timeout=TIMEOUT,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            bounded.read(answer, LARGEST_ANSWER, TIMEOUT)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # Its text quotes the address.
            raise NotificationError(f"the receiver cannot be reached ({_kind(error)})") from None
        finally:
            pool.clear()
        status = answer.status
        if not 200 <= status < 300:
            # What the receiver does not want, it will not want later. It may want it less often.
            final = 400 <= status < 500 and status not in (408, 429)
            raise NotificationError(f"the receiver answers HTTP {status}", final=final)

    def _url(self) -> str:
        try:
            url = (self._folder / URL).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NotificationError(
                f"{self._folder / URL} cannot be read: {_kind(error)}"
            ) from None
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise NotificationError(f"{self._folder / URL} holds no http:// or https:// address")
        return url


def _kind(error: Exception) -> str:
    return type(error).__name__
