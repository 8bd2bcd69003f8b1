"""Tell somebody elsewhere what happens to rollouts: each Event as a CloudEvent over HTTP.

Delivery is tried for a while and in order, in a thread of its own: nobody waits for it, and what
cannot be delivered is dropped and counted. What counts is kept in the record.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvquant import telemetry
from kvquant.api import names
from kvquant.api.v1alpha1 import Status
from kvquant.config import NOTIFY_FORMATS
from kvquant.core.turn import Announcement
from kvquant.errors import NotificationError
from kvquant.ports import Webhook

logger = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Notifications that wait at most; the oldest is dropped when there are more."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after a failure until it is tried again; they double with each."""
TRIES = 8
"""Tries for one notification, some three minutes in all."""

CLOUDEVENTS, SLACK = NOTIFY_FORMATS


@dataclass(frozen=True, slots=True)
class Notification:
    """Something that happened to a rollout.

    Attributes:
        id: Never used for anything else, and the same in every try.
        at: When.
        namespace: Namespace of the rollout.
        name: Its name.
        told: The Event that was posted for it.
        status: What had become of the rollout.
    """

    id: str
    at: datetime
    namespace: str
    name: str
    told: Announcement
    status: Status


def cloud_event(it: Notification) -> dict[str, Any]:
    """Return a notification as CloudEvents 1.0 have it, in the structured mode of JSON."""
    return {
        "specversion": "1.0",
        "id": it.id,
        "source": f"/apis/{names.API_VERSION}/namespaces/{it.namespace}/{names.PLURAL}/{it.name}",
        "type": f"{names.GROUP}.rollout.{it.told.reason}",
        "time": it.at.isoformat().replace("+00:00", "Z"),
        "subject": f"{it.namespace}/{it.name}",
        "datacontenttype": "application/json",
        "data": {
            "namespace": it.namespace,
            "rollout": it.name,
            "severity": it.told.type,
            "reason": it.told.reason,
            "message": it.told.message,
            "phase": it.status.phase.value,
            "step": it.status.step,
            "canaryWeight": it.status.weights.canary,
            "attempt": it.status.attempt,
        },
    }


def slack_message(it: Notification) -> dict[str, Any]:
    """Return a notification as an incoming webhook of Slack, or of what imitates it, takes it."""
    mark = ":warning:" if it.told.type == "Warning" else ":information_source:"
    head = f"*{it.namespace}/{it.name}* {it.told.reason}"
    at = f"{it.status.phase.value}, canary {it.status.weights.canary} %"
    # Slack reads <, > and & as markup, which an engine's words may hold.
    text = f"{mark} {head} ({at})\n{it.told.message}"
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, escaped)
    return {"text": text}


class Notifier:
    """Delivers notifications in order, in a thread of its own. Safe to share between threads."""

    def __init__(
        self,
        webhook: Webhook,
        format_: str = CLOUDEVENTS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """Get ready; `start` begins.

        Args:
            webhook: Whom to tell.
            format_: One of NOTIFY_FORMATS.
            clock: Returns the present instant.
            first_pause: Seconds until what failed is tried again.
        """
        self._webhook, self._clock, self._first_pause = webhook, clock, first_pause
        self._slack = format_ == SLACK
        self._waiting: deque[Notification] = deque()
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def stop(self, within: float = 3.0) -> None:
        """Try once more what waits, for so many seconds at most, and end."""
        self._stopping.set()
        with self._news:
            self._news.notify_all()
        if self._thread.is_alive():
            self._thread.join(within)

    def tell(self, namespace: str, name: str, told: Announcement, status: Status) -> None:
        """Have something told; never waits and never fails."""
        one = Notification(uuid.uuid4().hex, self._clock(), namespace, name, told, status)
        with self._news:
            self._waiting.append(one)
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                telemetry.NOTIFICATIONS.labels("dropped").inc()
            self._news.notify_all()

    def _run(self) -> None:
        while (one := self._next()) is not None:
            try:
                self._deliver(one)
            except Exception:
                telemetry.NOTIFICATIONS.labels("dropped").inc()
                logger.exception("A notification is given up")

    def _next(self) -> Notification | None:
        with self._news:
            while not self._waiting and not self._stopping.is_set():
                self._news.wait()
            return self._waiting.popleft() if self._waiting else None

    def _deliver(self, one: Notification) -> None:
        kind = "application/json" if self._slack else "application/cloudevents+json"
        body = json.dumps(slack_message(one) if self._slack else cloud_event(one)).encode()
        pause = self._first_pause
        for number in range(TRIES):
            try:
                self._webhook.post(body, kind)
            except NotificationError as error:
                if number == 0:
                    logger.warning("A notification is not delivered yet: %s", error)
                if error.final or self._stopping.is_set():
                    break
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                telemetry.NOTIFICATIONS.labels("delivered").inc()
                return
        telemetry.NOTIFICATIONS.labels("dropped").inc()
        logger.warning("A notification of %s/%s is given up", one.namespace, one.name)
