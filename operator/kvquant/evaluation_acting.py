"""The evaluation of an example set, between the cluster and what is decided of it."""

from __future__ import annotations

from typing import Any

from kvquant.api.evaluation import DEFAULT_FILE, ONE_SOURCE, ExampleSet
from kvquant.api.v1alpha1 import Phase, Pool, parse_duration
from kvquant.config import OperatorConfig
from kvquant.core.evaluation_manifests import EvaluationJob, Source, job_name, job_object
from kvquant.core.evaluation_reading import ended, read
from kvquant.core.observation import Problem
from kvquant.core.router_manifests import slot_service
from kvquant.ports import Object
from kvquant.world import World

KEYS_TOLD = 200
"""Names of a ConfigMap's keys that are told at most, in characters."""


def seen(world: World) -> dict[str, Any]:
    """Return the fields of an observation that speak of the evaluation; none in other phases."""
    rollout, status = world.rollout, world.rollout.status
    if status.phase is not Phase.EVALUATING or rollout.spec.evaluation is None:
        return {}
    report = status.evaluation
    run = report.run if report is not None else 0
    present = _present(world)
    return {
        "evaluation": None if present is None else read(present, world.evaluation_pods),
        "next_job": job_name(rollout.metadata.name, rollout.metadata.uid, status.attempt, run + 1),
        "evaluation_problem": _no_jobs(world) or _no_set(world, rollout.spec.evaluation.dataset),
    }


def missing(world: World) -> bool:
    """Tell whether the Job of the run that is on its way has yet to be made."""
    wanted = _wanted(world) is not None and world.jobs_refused is None
    return wanted and _present(world) is None


def superfluous(world: World) -> list[Object]:
    """Return the Jobs that still ask both pools something, and whose answer nobody waits for."""
    wanted = _wanted(world)
    return [
        job
        for job in world.evaluation_jobs
        if job["metadata"]["name"] != wanted
        and not ended(job)
        and "deletionTimestamp" not in job["metadata"]
    ]


def job(
    world: World, baseline: Pool, canary: Pool, ports: tuple[int, int], config: OperatorConfig
) -> Object:
    """Return the Job of the run that is on its way.

    Args:
        world: The rollout.
        baseline: The pool that serves today.
        canary: The pool with the quantized cache.
        ports: Ports on which the engines of baseline and canary serve.
        config: The operator's own configuration.
    """
    rollout, status = world.rollout, world.rollout.status
    asked, name = rollout.spec.evaluation, _wanted(world)
    assert asked is not None and name is not None, "the Job is missing"  # noqa: S101
    metadata, router = rollout.metadata, status.router or ""
    return job_object(
        EvaluationJob(
            name=name,
            namespace=metadata.namespace,
            rollout=metadata.name,
            owner=rollout.owner_reference,
            image=config.evaluation_image,
            image_pull_policy=config.image_pull_policy,
            image_pull_secrets=config.pull_secrets,
            source=_source(asked.dataset),
            baseline=f"{slot_service(router, baseline.slot)}:{ports[0]}",
            canary=f"{slot_service(router, canary.slot)}:{ports[1]}",
            margin_percent=asked.margin_percent,
            drift_percent=asked.drift_percent,
            noise_percent=asked.noise_percent,
            concurrency=asked.concurrency,
            deadline=parse_duration(asked.deadline),
            model=asked.model,
        )
    )


def _wanted(world: World) -> str | None:
    """Return the name of the Job of the run that is on its way; None: there is none."""
    status = world.rollout.status
    report = status.evaluation
    if status.phase is not Phase.EVALUATING or world.rollout.spec.evaluation is None:
        return None
    return report.job if report is not None and report.verdict is None else None


def _present(world: World) -> Object | None:
    """Return the Job of the latest run."""
    report = world.rollout.status.evaluation
    name = report.job if report is not None else None
    jobs = (job for job in world.evaluation_jobs if job["metadata"]["name"] == name)
    return next(jobs, None)


def _source(asked: ExampleSet) -> Source:
    return Source(
        config_map=asked.config_map_name,
        claim=asked.claim_name,
        path=(asked.key if asked.config_map_name else asked.path) or DEFAULT_FILE,
        url=asked.url,
        secret=asked.secret_name,
    )


def _no_jobs(world: World) -> Problem | None:
    """Return why no Job can be seen."""
    if world.jobs_refused is None:
        return None
    return Problem(
        "EvaluationRefused",
        f"The operator may not see Jobs ({world.jobs_refused}): upgrade the operator's chart, "
        "or apply examples/install/operator.yaml of this release.",
    )


def _no_set(world: World, asked: ExampleSet) -> Problem | None:
    """Return why there is no set, where the operator may look: volumes and buckets it may not."""
    if asked.sources != 1:
        return Problem("EvaluationDatasetMissing", f"spec.evaluation.dataset: {ONE_SOURCE}.")
    name, key = asked.config_map_name, asked.key or DEFAULT_FILE
    if name is None:
        return None
    if world.dataset is None:
        return Problem(
            "EvaluationDatasetMissing",
            f"spec.evaluation.dataset.configMapName: there is no ConfigMap {name!r}. Create it "
            f"with `kubectl create configmap {name} --from-file={key}`.",
        )
    keys = sorted({**(world.dataset.get("data") or {}), **(world.dataset.get("binaryData") or {})})
    if key not in keys:
        told = ", ".join(keys)[:KEYS_TOLD] or "nothing"
        return Problem(
            "EvaluationDatasetMissing",
            f"spec.evaluation.dataset.key: ConfigMap {name!r} has no key {key!r}; it has {told}.",
        )
    return None
