"""Looks for personal data that clients have sent in everything that the product writes.

Clients' own pods are left out: engines get the prompts as they are, with or without kvquant.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from kvlocal import product
from kvlocal.problems import LocalError

MAIL, CARD = "anna.schmidt@example.org", "4111 1111 1111 1111"
SENTENCES = (f"please answer to {MAIL} as before", f"my card is {CARD} and expires soon")
"""What clients say of themselves in some of their prompts."""
PLACEHOLDERS = ("<EMAIL_", "<CARD_")
"""What stands in their place in the log of the pairs."""

OPERATOR, ROUTER, SHADOW = "kvquant-operator", "kvquant-router", "kvquant-shadow"
PAIRS = "the log of the pairs"
"""Name of the place in which pairs of prompts and answers are kept."""

_TIMEOUT = 10.0
_PAIR_LOG = "find /var/log/kvquant -name '*.jsonl*' -exec cat {} +"
_KINDS = ("events", "configmaps", "kvqr")


class Kubectl(Protocol):
    """A cluster, as far as it is asked here."""

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl as administrator and return what it printed.

        Raises:
            LocalError: It failed.
        """
        ...


def collect(cluster: Kubectl, namespace: str, *, copied: bool = True) -> dict[str, str]:
    """Return everything that the product has written of a namespace's requests, by its place.

    Args:
        cluster: The cluster.
        namespace: Where the rollout is.
        copied: Whether the shadow service must still be there: its log of pairs goes with its pod.

    Raises:
        LocalError: One of the places cannot be read, so that nothing can be said of it.
    """
    found: dict[str, str] = {}
    for pod in _pods(cluster, namespace):
        meta = pod["metadata"]
        name, where = meta["labels"]["app.kubernetes.io/name"], (meta["name"], meta["namespace"])
        log = cluster.kubectl("logs", where[0], "-n", where[1], "--all-containers")
        _add(found, f"log of {name}", log)
        _add(found, f"metrics of {name}", _metrics(pod))
        if name == SHADOW:
            shell = ("--", "sh", "-c", _PAIR_LOG)
            _add(found, PAIRS, cluster.kubectl("exec", where[0], "-n", where[1], *shell))
    needed = {OPERATOR, ROUTER, SHADOW} if copied else {OPERATOR, ROUTER}
    missing = needed - {place.removeprefix("log of ") for place in found}
    if missing:
        raise LocalError(f"no running pod of {', '.join(sorted(missing))} to read from")
    for kind in _KINDS:
        found[kind] = cluster.kubectl("get", kind, "-n", namespace, "-o", "json")
    found["events of the operator"] = cluster.kubectl(
        "get", "events", "-n", product.NAMESPACE, "-o", "json"
    )
    return found


def leaks(texts: Mapping[str, str], values: Iterable[str] = (MAIL, CARD)) -> dict[str, list[str]]:
    """Return where which of the values appear, however they are spaced or written.

    Args:
        texts: What was written, by its place.
        values: What must not be in it.
    """
    forms = {form for value in values for form in _forms(value)}
    found = {}
    for place, text in texts.items():
        lowered = text.lower()
        if there := sorted(form for form in forms if form in lowered):
            found[place] = there
    return found


def _forms(value: str) -> set[str]:
    """Return how a value may be written, in small letters."""
    small = value.lower()
    parts = small.split()
    return {glue.join(parts) for glue in (" ", "", "-", "%20", "+")} | {
        small.replace("@", "%40"),
        json.dumps(small)[1:-1],
    }


def _pods(cluster: Kubectl, namespace: str) -> list[dict[str, Any]]:
    names = f"app.kubernetes.io/name in ({OPERATOR},{ROUTER},{SHADOW})"
    text = cluster.kubectl("get", "pods", "-A", "-l", names, "-o", "json")
    mine = (namespace, product.NAMESPACE)
    return [
        pod
        for pod in json.loads(text)["items"]
        if pod["metadata"]["namespace"] in mine and pod["status"].get("phase") == "Running"
    ]


def _metrics(pod: Mapping[str, Any]) -> str:
    notes = pod["metadata"]["annotations"]
    port = notes["prometheus.io/port"]
    path = notes.get("prometheus.io/path", "/metrics")
    url = f"http://{pod['status']['podIP']}:{port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError) as error:
        raise LocalError(f"{url} cannot be read: {error}") from error


def _add(found: dict[str, str], place: str, text: str) -> None:
    found[place] = found.get(place, "") + text
