"""What Alertmanager sends to a webhook: version 4 of its notifications, as far as it matters here.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from kvquant.alerting.board import Note
from kvquant.api.v1alpha1 import AlertSource
from kvquant.core.alerts import Alert

MOST_ALERTS, MOST_LABELS = 1000, 64
"""Alerts in one notification, and labels of one alert."""


class PayloadError(ValueError):
    """A body that is no notification of version 4; the message names the field."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class _Alert(_Part):
    status: Literal["firing", "resolved"]
    labels: Annotated[dict[str, str], Field(max_length=MOST_LABELS)]
    starts_at: AwareDatetime
    ends_at: AwareDatetime | None = None


class Notification(_Part):
    """One notification: the alerts of a group, each with a state of its own.

    Attributes:
        truncated_alerts: Alerts of the group that were left out, because the receiver's
            `max_alerts` is less than the group has.
    """

    version: Literal["4"]
    truncated_alerts: Annotated[int, Field(ge=0)] = 0
    alerts: Annotated[tuple[_Alert, ...], Field(max_length=MOST_ALERTS)]

    @classmethod
    def parse(cls, body: bytes) -> Notification:
        """Read a body.

        Raises:
            PayloadError: It is no notification of version 4.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise PayloadError(f"{where}: {first['msg']}"[:300]) from None

    def notes(self, now: datetime) -> list[Note]:
        """Return what is told of each alert, heard at this instant."""
        return [_note(alert, now) for alert in self.alerts]


def _note(told: _Alert, now: datetime) -> Note:
    # A sender whose clock is ahead must not make an alert that begins only later.
    since = min(told.starts_at, now)
    alert = Alert.of(told.labels, since, AlertSource.WEBHOOK, now)
    if told.status == "firing":
        return Note(alert)
    return Note(alert, max(since, min(told.ends_at or now, now)))
