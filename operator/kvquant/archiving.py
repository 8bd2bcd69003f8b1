"""Append what was recorded to an archive, such as a bucket, without anybody waiting for it.

A rollout's record is a ConfigMap, which goes with the rollout and may be changed. Who wants more
has each decision written to an archive, too: the very line of the record, as an object of its own.
The record stays the first one: what the archive lacks is read from it, after a restart as well.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvquant import telemetry
from kvquant.api import names
from kvquant.core import record
from kvquant.core.ownership import owners_of
from kvquant.errors import ArchiveError, ClusterError
from kvquant.ports import Archive, Cluster

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after a failure in which nothing is written; they double with each."""


@dataclass(frozen=True, slots=True)
class Whose:
    """The rollout that a record is of."""

    namespace: str
    name: str
    uid: str

    def path(self, number: int) -> str:
        """Return where a decision stands in the archive."""
        return f"{self.namespace}/{self.name}/{self.uid}/{record.key_of(number)}.json"


@dataclass(slots=True)
class _Backlog:
    """What the archive lacks of one record.

    Attributes:
        done: Newest decision that is in the archive, with all before it.
        recorded: Newest decision in the record.
        lines: Lines of decisions in between, as far as this process wrote them.
        gone: Whether the rollout is gone, so that nothing will follow.
    """

    done: int
    recorded: int = 0
    lines: dict[int, str] = field(default_factory=dict)
    gone: bool = False

    @property
    def missing(self) -> int:
        """How many decisions the archive lacks."""
        return max(0, self.recorded - self.done)


class Archivist:
    """Keeps an archive complete, in a thread of its own. Safe to share between threads."""

    def __init__(
        self, archive: Archive, cluster: Cluster, first_pause: float = FIRST_PAUSE
    ) -> None:
        """Get ready; `start` begins.

        Args:
            archive: Where to write.
            cluster: Reads whole records, which a cache may not hold.
            first_pause: Seconds until a write that failed is made again.
        """
        self._archive = archive
        self._cluster = cluster
        self._first_pause = first_pause
        self._backlogs: dict[Whose, _Backlog] = {}
        self._said = ""
        self._stopped = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more. What is missing then is found in the records by the next process."""
        with self._news:
            self._stopped = True
            self._news.notify_all()

    def done(self, whose: Whose) -> int | None:
        """Return the newest decision in the archive; None where this process does not know."""
        with self._news:
            backlog = self._backlogs.get(whose)
            return None if backlog is None else backlog.done

    def offer(self, whose: Whose, mark: int, recorded: int, lines: Mapping[int, str]) -> None:
        """Tell how far a record is. Never waits and never fails.

        Args:
            whose: The rollout.
            mark: Newest decision that the record says is in the archive; it may lag behind.
            recorded: Newest decision in the record.
            lines: Lines that have just been added to it, by number.
        """
        with self._news:
            backlog = self._backlogs.setdefault(whose, _Backlog(mark))
            if recorded < max(backlog.done, backlog.recorded):
                # Somebody has cut the status, and numbers have begun anew.
                backlog.done = 0
                backlog.lines.clear()
            backlog.recorded, backlog.gone = recorded, False
            backlog.lines |= lines
            for number in sorted(backlog.lines)[: -record.KEPT]:
                del backlog.lines[number]
            if backlog.missing:
                self._count()
                self._news.notify_all()

    def forget(self, namespace: str, name: str) -> None:
        """Take note that a rollout is gone: what this process knows of it is still written."""
        with self._news:
            for whose in [w for w in self._backlogs if (w.namespace, w.name) == (namespace, name)]:
                self._backlogs[whose].gone = True
                if not self._backlogs[whose].missing:
                    del self._backlogs[whose]

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._news:
                if pause:
                    # News do not mend what has failed.
                    self._news.wait_for(lambda: self._stopped, pause)
                else:
                    self._news.wait_for(lambda: self._stopped or self._next() is not None)
                if self._stopped:
                    return
                whose = self._next()
            if whose is None:
                pause = 0.0
                continue
            problem = self._catch_up(whose)
            if problem is None:
                pause, self._said = 0.0, ""
                continue
            telemetry.ARCHIVE_ERRORS.inc()
            pause = min(LONGEST_PAUSE, 2 * pause or self._first_pause)
            if self._said != problem:
                self._said = problem
                logger.warning(
                    "Decisions cannot be written to the archive yet, and are tried again: %s",
                    problem,
                )

    def _next(self) -> Whose | None:
        return next((whose for whose, one in self._backlogs.items() if one.missing), None)

    def _catch_up(self, whose: Whose) -> str | None:
        """Write what is missing of one record; return why not, if so."""
        with self._news:
            backlog = self._backlogs[whose]
            numbers = range(backlog.done + 1, backlog.recorded + 1)
            lines = {n: backlog.lines[n] for n in numbers if n in backlog.lines}
        try:
            if len(lines) < len(numbers):
                lines = self._recorded(whose) | lines
            for number in numbers:
                if number in lines:
                    self._archive.put(whose.path(number), lines[number])
                    telemetry.ARCHIVED.inc()
                self._written(whose, number)
        except (ArchiveError, ClusterError) as error:
            problem = str(error)
        except Exception as error:
            # Whatever it is: a thread that has died would be found out much later.
            problem = f"{type(error).__name__}: {error}"
        else:
            return None
        self._to_the_end(whose)
        return problem

    def _recorded(self, whose: Whose) -> dict[int, str]:
        """Return the lines of a record; none when it is gone, or another rollout's by now.

        Raises:
            ClusterError: The API server did not answer.
        """
        found = self._cluster.get("ConfigMap", whose.namespace, record.name_of(whose.name))
        if found is None or whose.uid not in owners_of(found):
            return {}
        if names.LABEL_RECORD not in (found["metadata"].get("labels") or {}):
            return {}
        data = found.get("data") or {}
        return {int(key): text for key, text in data.items() if _is_line(key, text)}

    def _written(self, whose: Whose, number: int) -> None:
        with self._news:
            backlog = self._backlogs[whose]
            # Unless numbers have begun anew in the meantime.
            if backlog.done < number <= backlog.recorded:
                backlog.done = number
            backlog.lines.pop(number, None)
            if backlog.gone and not backlog.missing:
                del self._backlogs[whose]
            self._count()

    def _to_the_end(self, whose: Whose) -> None:
        """Let the others come first: what is wrong may concern this one alone."""
        with self._news:
            if whose in self._backlogs:
                self._backlogs[whose] = self._backlogs.pop(whose)

    def _count(self) -> None:
        telemetry.ARCHIVE_PENDING.set(sum(one.missing for one in self._backlogs.values()))


def _is_line(key: str, text: str) -> bool:
    """Tell whether something in a record is a decision, and not what somebody has put there."""
    if not (key.isascii() and key.isdigit()):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
