"""The certificate of the weights service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from kvquant.router.pki import make_identity

HOST = "kvquant-xds.kvquant-system.svc"


def verify(ca: bytes, certificate: bytes, host: str, at: datetime) -> None:
    PolicyBuilder().store(Store([x509.load_pem_x509_certificate(ca)])).time(
        at
    ).build_server_verifier(x509.DNSName(host)).verify(
        x509.load_pem_x509_certificate(certificate), []
    )


def test_clients_can_verify_the_server_for_years() -> None:
    now = datetime.now(UTC)
    identity = make_identity([HOST])
    for at in (now, now + timedelta(days=9 * 365)):
        verify(identity.ca, identity.certificate, HOST, at)


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
    assert "PRIVATE KEY" not in repr(identity)


def test_a_server_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one DNS name"):
        make_identity([])
