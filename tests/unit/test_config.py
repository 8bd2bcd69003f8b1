"""The operator's configuration: what cannot be used is named, with the remedy."""

from __future__ import annotations

from dataclasses import fields
from typing import cast

import pytest

from kvquant.__main__ import archivist_of
from kvquant.adapters.connection import Connection
from kvquant.config import ConfigError, OperatorConfig


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("KVQUANT_XDS_PORT", "many", "a whole number"),
        ("KVQUANT_XDS_PORT", "", "a whole number"),
        ("KVQUANT_XDS_PORT", "0", "a port from 1 to 65535"),
        ("KVQUANT_METRICS_PORT", "65536", "a port from 1 to 65535"),
        ("KVQUANT_PROMETHEUS_TIMEOUT", "soon", "a number"),
        ("KVQUANT_PROMETHEUS_TIMEOUT", "-1", "a number of seconds above 0"),
        ("KVQUANT_STUCK_AFTER", "nan", "a number of seconds above 0"),
        ("KVQUANT_STUCK_AFTER", "inf", "a number of seconds above 0"),
        ("KVQUANT_PROMETHEUS_DELAY", "-1", "a number of seconds above 0"),
        ("KVQUANT_TICK_SECONDS", "0", "a number of seconds above 0"),
        ("KVQUANT_PROMETHEUS_POD_LABEL", "pod-name", "'pod-name' is no name of a label"),
        ("KVQUANT_PROMETHEUS_NAMESPACE_LABEL", "", "'' is no name of a label"),
        ("KVQUANT_PROMETHEUS_MATCHERS", "cluster=prod-1", 'write them as in cluster="prod-1"'),
        ("KVQUANT_ALERTS_MATCHERS", "{}", 'write them as in cluster="prod-1"'),
        ("KVQUANT_IMAGE_PULL_SECRETS", "registry, My_Secret", "'My_Secret' is no name of a Secret"),
        ("KVQUANT_LOG_LEVEL", "verbose", "one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_was_expected(
    variable: str, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        OperatorConfig.from_environment({variable: text})
    assert variable in str(refused.value)
    assert expected in str(refused.value)


def test_nothing_set_gives_every_default() -> None:
    assert OperatorConfig.from_environment({"PATH": "/bin"}) == OperatorConfig()


def test_every_field_can_be_set_and_keeps_its_type() -> None:
    given = {"str": "WARNING", "int": "1234", "float": "12.5"}
    choosy = {
        "prometheus_matchers": 'cluster="a"',
        "alerts_matchers": 'cluster="a"',
        "notify_format": "slack",
        "image_pull_secrets": "registry",
    }
    texts = {f.name: choosy.get(f.name, given[str(f.type)]) for f in fields(OperatorConfig)}
    environment = {f"KVQUANT_{name.upper()}": text for name, text in texts.items()}
    config = OperatorConfig.from_environment(environment)
    for field in fields(OperatorConfig):
        value = getattr(config, field.name)
        assert type(value).__name__ == field.type
        assert str(value) == texts[field.name]


@pytest.mark.parametrize(
    ("text", "namespaces"),
    [("", ()), (" , ", ()), ("a", ("a",)), ("a, b ,,c", ("a", "b", "c"))],
)
def test_namespaces_are_a_list_with_commas(text: str, namespaces: tuple[str, ...]) -> None:
    assert OperatorConfig(watch_namespaces=text).namespaces == namespaces


def test_an_archive_that_nobody_can_write_to_is_told_at_start_and_its_password_is_not() -> None:
    config = OperatorConfig.from_environment(
        {"KVQUANT_RECORD_URL": "s3://key:a-secret@bucket/prefix"}
    )
    with pytest.raises(ConfigError, match="KVQUANT_RECORD_URL cannot be written to") as refused:
        archivist_of(config, cast("Connection", None))
    assert "a-secret" not in str(refused.value)
    assert archivist_of(OperatorConfig(), cast("Connection", None)) is None


@pytest.mark.parametrize(
    ("text", "secrets"),
    [("", ()), ("registry", ("registry",)), (" registry, mirror.eu ,", ("registry", "mirror.eu"))],
)
def test_secrets_to_pull_with_are_separated_by_commas(text: str, secrets: tuple[str, ...]) -> None:
    config = OperatorConfig.from_environment({"KVQUANT_IMAGE_PULL_SECRETS": text})
    assert config.pull_secrets == secrets
