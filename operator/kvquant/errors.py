"""Every exception of ours.

KVQuantError
├── ClusterError            the Kubernetes API did not do what was asked
│   ├── Conflict            409: somebody else wrote first; read and decide again
│   ├── Refused             400, 403, 405, 422: asking again will not help
│   └── Unavailable         429, 5xx, time-out, no connection: ask again later
├── MetricsError            Prometheus did not answer, or answered nonsense
├── ArchiveError            a bucket or folder did not take what it was given
├── NotificationError       the receiver of notifications did not take one
└── TemplateError           a pod template that cannot be turned into a canary
"""

from __future__ import annotations


class KVQuantError(Exception):
    """Base of every exception that this package raises on purpose."""


class ClusterError(KVQuantError):
    """The Kubernetes API did not do what was asked."""


class Conflict(ClusterError):  # noqa: N818 - the API's own word for it
    """Somebody else wrote the object first: read it and decide again."""


class Refused(ClusterError):  # noqa: N818 - as above
    """The API server understood and said no: asking again will not help."""


class Unavailable(ClusterError):  # noqa: N818 - as above
    """The API server did not answer in time or asked to come back later."""


class MetricsError(KVQuantError):
    """Prometheus did not answer, or answered what nobody can read."""


class ArchiveError(KVQuantError):
    """A bucket or folder did not take what it was given."""


class NotificationError(KVQuantError):
    """The receiver of notifications did not take one.

    Attributes:
        final: Whether it will not take it later, either.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class TemplateError(KVQuantError):
    """A pod template that cannot be turned into a canary.

    Attributes:
        reason: CamelCase cause for conditions and Events.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
