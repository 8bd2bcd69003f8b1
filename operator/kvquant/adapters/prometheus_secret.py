"""Credentials and trust for Prometheus, from the files of a mounted Secret.

The files are read for every request, because Secrets are changed in place: a token that was renewed
is the next request's. What they hold is in no message, no log and no representation of an object.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from kvquant.errors import MetricsError

TOKEN, USERNAME, PASSWORD = "token", "username", "password"
AUTHORITY, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
HEADER = "header."
"""A file with this and a name holds the value of the header of that name."""

LONGEST = 16 * 1024
"""Bytes of the longest value that is read."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one request bears.

    Attributes:
        headers: Headers by name.
        authority: File with the certificates that may have signed the server's; None: the system's.
        client: Files with the client's certificate and its key; None: it has none.
        files: Names of the files that the server judges, for messages.
    """

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    authority: str | None = None
    client: tuple[str, str] | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MountedSecret:
    """The folder of a mounted Secret; None: there is none, and requests bear nothing.

    Its files, each of which may be missing: `token` (sent as a bearer token), `username` and
    `password`, `header.NAME` for further headers, `ca.crt`, `tls.crt` and `tls.key`.
    """

    folder: Path | None = None

    def credentials(self) -> Credentials:
        """Read the files.

        Raises:
            MetricsError: They cannot be read or do not go together; it names the file.
        """
        if self.folder is None:
            return Credentials()
        # The kubelet swaps all files of a Secret at once, by this link.
        now = self.folder / "..data"
        folder = now.resolve() if now.exists() else self.folder
        try:
            names = {path.name for path in folder.iterdir() if not path.name.startswith("..")}
        except OSError as error:
            raise MetricsError(
                f"KVQUANT_PROMETHEUS_AUTH_FOLDER={self.folder}: {error.strerror}: mount the Secret "
                "with the credentials for Prometheus there."
            ) from None
        headers = {
            name.removeprefix(HEADER): self._value(folder, name)
            for name in sorted(names)
            if name.startswith(HEADER)
        }
        files = tuple(name for name in sorted(names) if name.startswith(HEADER))
        if TOKEN in names:
            if USERNAME in names:
                raise MetricsError(
                    f"{self.folder} has both {TOKEN} and {USERNAME}: only one can be sent, remove "
                    "the other."
                )
            headers["Authorization"] = f"Bearer {self._value(folder, TOKEN)}"
            files = (TOKEN, *files)
        elif USERNAME in names or PASSWORD in names:
            self._both(names, USERNAME, PASSWORD)
            pair = f"{self._value(folder, USERNAME)}:{self._value(folder, PASSWORD)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
            files = (USERNAME, PASSWORD, *files)
        client = None
        if CERTIFICATE in names or KEY in names:
            self._both(names, CERTIFICATE, KEY)
            client = str(folder / CERTIFICATE), str(folder / KEY)
            files = (*files, CERTIFICATE)
        authority = str(folder / AUTHORITY) if AUTHORITY in names else None
        return Credentials(headers, authority, client, files)

    def _both(self, names: set[str], one: str, other: str) -> None:
        for name, partner in ((one, other), (other, one)):
            if name not in names:
                raise MetricsError(f"{self.folder} has {partner} but no {name}: add it.")

    def _value(self, folder: Path, name: str) -> str:
        try:
            with (folder / name).open("rb") as file:
                data = file.read(LONGEST + 1)
        except OSError as error:
            raise MetricsError(f"{self.folder}/{name} cannot be read: {error.strerror}") from None
        # A new line at the end is how editors and `echo` write a file.
        try:
            text = data.decode().strip("\r\n") if name == PASSWORD else data.decode("ascii").strip()
        except UnicodeDecodeError:
            text = "\n"
        if not text:
            raise MetricsError(f"{self.folder}/{name} is empty: write the value into the Secret.")
        if len(data) > LONGEST or not text.isprintable():
            raise MetricsError(
                f"{self.folder}/{name} is not one line of plain characters and at most {LONGEST} "
                "bytes: write the bare value into the Secret."
            )
        return text
