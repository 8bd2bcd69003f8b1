"""What decisions see of a pod: only an engine that ended by itself has died."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api import names
from kvquant.ports import Object
from kvquant.world import pod_view

ENDED = {"reason": "Completed", "exitCode": 0, "finishedAt": "2026-11-25T12:00:30Z"}


def pod(engine: dict[str, Any], *others: dict[str, Any], **metadata: Any) -> Object:
    return {
        "metadata": {"name": "pool-1", **metadata},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [*others, {"name": "vllm", **engine}],
        },
    }


@pytest.mark.parametrize(
    "engine", [{"state": {"terminated": ENDED}}, {"lastState": {"terminated": ENDED}}]
)
def test_an_end_with_exit_code_0_is_a_death(engine: dict[str, Any]) -> None:
    view = pod_view(pod(engine), "vllm")
    assert view.died_at is not None
    assert view.death == "Completed, exit code 0"


@pytest.mark.parametrize(
    ("gone_at", "died"),
    [("2026-11-25T12:01:00Z", False), ("2026-11-25T12:01:31Z", True)],
    ids=["deleted at 12:00:00", "deleted at 12:00:31"],
)
def test_an_end_that_was_asked_for_is_none(gone_at: str, died: bool) -> None:
    doomed = pod(
        {"state": {"terminated": ENDED}}, deletionTimestamp=gone_at, deletionGracePeriodSeconds=60
    )
    view = pod_view(doomed, "vllm")
    assert (view.died_at is not None) is died
    assert not view.ready, "a pod that is being deleted counts for nothing"


def test_a_sidecars_end_is_not_the_engines() -> None:
    sidecar = {"name": "proxy", "lastState": {"terminated": ENDED}, "restartCount": 9}
    view = pod_view(pod({"containerID": "c1", "restartCount": 1}, sidecar), "vllm")
    assert (view.died_at, view.restarts, view.container_id) == (None, 1, "c1")


@pytest.mark.parametrize(
    ("label", "verified", "running", "serving"),
    [
        ("true", "c1", "c1", True),
        ("true", "c1", "c2", False),
        ("true", None, "c1", False),
        (None, "c1", "c1", False),
        ("true", "", "", False),
    ],
)
def test_a_pod_serves_only_with_the_very_container_that_was_proven(
    label: str | None, verified: str | None, running: str, serving: bool
) -> None:
    labels = {} if label is None else {names.LABEL_SERVING: label}
    annotations = {} if verified is None else {names.ANNOTATION_VERIFIED: verified}
    seen = pod_view(pod({"containerID": running}, labels=labels, annotations=annotations), "vllm")
    assert seen.serving is serving


def test_a_pod_of_which_nothing_is_known_yet_is_in_no_trouble() -> None:
    view = pod_view({"metadata": {"name": "pool-1"}}, None)
    assert (view.ready, view.serving, view.trouble, view.died_at) == (False, False, "", None)


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (
            {
                "containerStatuses": [
                    {
                        "state": {
                            "waiting": {"reason": "ImagePullBackOff", "message": "no such image"}
                        }
                    }
                ]
            },
            "ImagePullBackOff: no such image",
        ),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no GPU"}]},
            "not scheduled: no GPU",
        ),
    ],
)
def test_trouble_is_told_in_the_words_of_those_who_have_it(status: Object, trouble: str) -> None:
    assert pod_view({"metadata": {"name": "p"}, "status": status}, None).trouble == trouble
