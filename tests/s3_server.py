"""A real S3 server on loopback: a gateway in front of a folder, whose folders are its buckets."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests.waiting import wait_until

KEY, SECRET = "kvquant-tests", "not-a-secret-of-anybody"


class S3Server:
    """Can be stopped and started again, at the same address and with the same objects."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "buckets"
        self._data.mkdir(parents=True)
        (folder / "metadata").mkdir()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What clients are told by, as they would be told of AWS or MinIO."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> Path:
        """Return the folder of a new bucket."""
        bucket = self._data / name
        bucket.mkdir()
        return bucket

    def start(self) -> None:
        """Serve."""
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    binary(),
                    *("--port", f"127.0.0.1:{self._port}", "--health", "/health"),
                    # Not every file system has the extended attributes that it would use instead.
                    *("posix", "--sidecar", str(self._folder / "metadata"), str(self._data)),
                ],
                env={**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._is_up, 20, f"the S3 server should listen (its log: {log.name})")

    def stop(self) -> None:
        """Serve no more."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def _is_up(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True


def binary() -> str:
    """Return the path of the server: named by KVQUANT_S3_SERVER_BIN, else built once and cached."""
    named = os.environ.get("KVQUANT_S3_SERVER_BIN")
    if named:
        return named
    from kvlocal.binaries import s3_gateway

    return str(s3_gateway())
