"""Make the shadow service what the persisted status says."""

from __future__ import annotations

from kvquant.api.spec import Shadow
from kvquant.api.v1alpha1 import Phase, Pool, Status, parse_duration
from kvquant.config import OperatorConfig
from kvquant.core.plan import Plan
from kvquant.core.record import fingerprint
from kvquant.core.router_manifests import slot_service
from kvquant.core.shadow_manifests import LOG_DIRECTORY, ShadowSpec, shadow_objects
from kvquant.core.shadow_settings import (
    ArmSettings,
    LogSettings,
    ShadowSettings,
    UserPattern,
)
from kvquant.ports import Object
from kvquant.world import World

WANTED = frozenset({Phase.VERIFYING, Phase.EVALUATING, Phase.SHADOWING})
"""Phases in which the service is brought up. It is asked for early, so that it is ready when its
phase begins."""


LOAD_AT_ONCE = 64
"""Requests under way at most that are there to give the canary load. What is not under way waits,
and what waits for long is dropped: load that an engine cannot take is no load."""
LOAD_ANSWER_TOKENS = 8192
"""Longest answer of theirs: the client's own limit counts, where it is lower."""


def wanted(status: Status, shadow: Shadow) -> bool:
    """Tell whether the shadow service must be there.

    Args:
        status: The rollout's.
        shadow: What its spec asks for.
    """
    if status.phase is Phase.PROGRESSING:
        return shadow.match_load
    return shadow.percent > 0 and status.phase in WANTED


def objects(
    world: World, baseline: Pool, canary: Pool, ports: tuple[int, int], config: OperatorConfig
) -> list[Object]:
    """Return the objects of a rollout's shadow service.

    Args:
        world: The rollout.
        baseline: The pool that serves today.
        canary: The pool with the quantized cache.
        ports: Ports on which the engines of baseline and canary serve.
        config: The operator's own configuration.
    """
    rollout, status = world.rollout, world.rollout.status
    spec, metadata = rollout.spec.shadow, rollout.metadata
    router = status.router or ""
    log = LogSettings(
        url=spec.log.url or f"file://{LOG_DIRECTORY}",
        max_bytes=spec.log.max_size_mi * 1024 * 1024,
        retention_hours=max(1, int(parse_duration(spec.log.retention).total_seconds() // 3600)),
    )
    mark = fingerprint(metadata.uid, status.attempt) if rollout.spec.engine.fingerprint else ""
    settings = ShadowSettings(
        namespace=metadata.namespace,
        rollout=metadata.name,
        uid=metadata.uid,
        attempt=status.attempt,
        baseline=_arm(router, baseline, ports[0], _image(world.target)),
        canary=_arm(router, canary, ports[1], _image(world.canary), mark),
        percent=spec.percent,
        max_answer_tokens=spec.max_answer_tokens,
        noise_percent=spec.noise_percent,
        saturation_probe=spec.saturation_probe,
        patterns=tuple(UserPattern(name=p.name, pattern=p.pattern) for p in spec.patterns),
        log=log,
    )
    if status.phase is Phase.PROGRESSING:
        settings = _load_only(settings, Plan.of(rollout.spec), baseline)
    key = spec.engine_key_secret
    return shadow_objects(
        ShadowSpec(
            router=router,
            rollout=metadata.name,
            owner=rollout.owner_reference,
            image=config.shadow_image,
            image_pull_policy=config.image_pull_policy,
            image_pull_secrets=config.pull_secrets,
            settings=settings,
            secret_name=spec.log.secret_name,
            claim_name=spec.log.claim_name,
            engine_key=None if key is None else (key.name, key.key),
            volume_mi=spec.log.max_size_mi,
        )
    )


def _load_only(settings: ShadowSettings, plan: Plan, baseline: Pool) -> ShadowSettings:
    """Return the settings of a service that tops the canary up, the same in every step."""
    return settings.model_copy(
        update={
            "load_only": True,
            # Never 0, which would be no limit.
            "percent": max(1.0, 100 * plan.most_topped_up(baseline.replicas)),
            "concurrency": LOAD_AT_ONCE,
            "max_answer_tokens": LOAD_ANSWER_TOKENS,
            "noise_percent": 0,
            "saturation_probe": False,
        }
    )


def _arm(router: str, pool: Pool, port: int, image: str, fingerprint: str = "") -> ArmSettings:
    return ArmSettings(
        host=slot_service(router, pool.slot),
        port=port,
        deployment=pool.deployment,
        dtype=pool.dtype,
        image=image,
        fingerprint=fingerprint,
    )


def _image(deployment: Object | None) -> str:
    """Return the image of a pool's first container, which is provenance and no more."""
    containers = ((deployment or {}).get("spec") or {}).get("template", {}).get("spec", {})
    first = (containers.get("containers") or [{}])[0]
    return str(first.get("image") or "")
