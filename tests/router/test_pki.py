"""The certificate of the weights service."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from kvquant.router.pki import (
    AUTHORITY_RENEWED_BEFORE,
    AUTHORITY_VALIDITY,
    make_identity,
    renew,
)

HOST = "kvquant-xds.kvquant-system.svc"


def verify(ca: bytes, shown: bytes, host: str, at: datetime) -> None:
    server, *others = x509.load_pem_x509_certificates(shown)
    PolicyBuilder().store(Store([x509.load_pem_x509_certificate(ca)])).time(
        at
    ).build_server_verifier(x509.DNSName(host)).verify(server, others)


def ends(certificate: bytes) -> datetime:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def test_clients_can_verify_the_server_until_its_certificate_ends() -> None:
    now = datetime.now(UTC)
    identity = make_identity([HOST])
    for at in (now, now + timedelta(days=89)):
        verify(identity.ca, identity.certificate, HOST, at)
    with pytest.raises(VerificationError):
        verify(identity.ca, identity.certificate, HOST, now + timedelta(days=91))


def test_clients_can_verify_each_next_certificate_with_the_authority_that_they_know() -> None:
    now = datetime.now(UTC)
    first = identity = make_identity([HOST], now)
    for days in range(60, 8 * 365, 60):
        at = now + timedelta(days=days)
        before, identity = identity, renew(identity, [HOST], at)
        assert identity.key != before.key
        verify(first.ca, identity.certificate, HOST, at + timedelta(days=89))
    assert identity.ca == first.ca


def test_a_new_authority_can_be_verified_by_who_knows_only_the_old_one() -> None:
    now = datetime.now(UTC)
    old = make_identity([HOST], now)
    late = ends(old.ca) - AUTHORITY_RENEWED_BEFORE + timedelta(days=1)
    new = renew(old, [HOST], late)
    assert new.ca != old.ca
    later = late + timedelta(days=60)
    newer = renew(new, [HOST], later)
    assert newer.ca == new.ca
    for identity, at in ((new, late), (newer, later)):
        for ca in (old.ca, new.ca):
            verify(ca, identity.certificate, HOST, at + timedelta(days=1))
    # Who has not heard of it when the old one ends has had a year.
    after = ends(old.ca) + timedelta(days=1)
    last = renew(newer, [HOST], after)
    assert last.certificate.count(b"BEGIN CERTIFICATE") == 1
    verify(new.ca, last.certificate, HOST, after)
    with pytest.raises(VerificationError):
        verify(old.ca, last.certificate, HOST, after)


def test_no_certificate_outlives_its_authority() -> None:
    old = make_identity([HOST])
    short = renew(old, [HOST], validity=timedelta(days=20 * 365))
    assert ends(short.certificate) == ends(old.ca)


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({"ca_key": None}, None),
        ({"ca_key": b"no PEM"}, None),
        ({"ca_key": make_identity([HOST]).ca_key}, None),
        ({}, datetime.now(UTC) + AUTHORITY_VALIDITY + timedelta(days=1)),
    ],
    ids=["not kept", "not a key", "another's", "ended"],
)
def test_an_authority_that_can_sign_no_more_is_told(
    changes: dict[str, Any], now: datetime | None
) -> None:
    with pytest.raises(ValueError):
        renew(replace(make_identity([HOST]), **changes), [HOST], now)


def test_another_name_or_authority_is_not_believed() -> None:
    now = datetime.now(UTC)
    identity = make_identity([HOST])
    with pytest.raises(VerificationError):
        verify(identity.ca, identity.certificate, "elsewhere.svc", now)
    with pytest.raises(VerificationError):
        verify(make_identity([HOST]).ca, identity.certificate, HOST, now)


def test_the_key_is_not_shown() -> None:
    identity = make_identity([HOST])
    assert b"PRIVATE KEY" in identity.key
    assert b"PRIVATE KEY" in (identity.ca_key or b"")
    assert "PRIVATE KEY" not in repr(identity)


def test_a_server_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one DNS name"):
        make_identity([])
