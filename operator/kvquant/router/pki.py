"""The certificate of the weights service, from an authority that signs nothing else.

Routers trust the authority, which outlives many certificates: a new certificate asks nothing of
them. A new authority is vouched for by its predecessor, in a certificate that the service shows
along with its own, so that routers which know either of the two can verify it at any moment.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = timedelta(days=90)
"""Of a certificate: whoever steals its key has it for that long."""
AUTHORITY_VALIDITY = timedelta(days=3650)
AUTHORITY_RENEWED_BEFORE = timedelta(days=365)
"""Time before an authority's end from which it gets a successor: a year for all routers to hear of
it, which takes them minutes."""
CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a TLS server needs, PEM.

    Attributes:
        ca: Certificate by which clients verify the server.
        certificate: The server's own certificate, followed by what vouches for a new authority.
        key: The server's private key; never shown in a repr.
        ca_key: The authority's private key, with which the next certificate is signed; None when
            it was not kept.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    ca_key: bytes | None = field(default=None, repr=False)


def make_identity(
    hosts: Sequence[str], now: datetime | None = None, validity: timedelta = VALIDITY
) -> ServerIdentity:
    """Make an authority that nobody knows yet, and a server certificate of it.

    Args:
        hosts: DNS names by which clients reach the server.
        now: Instant from which the certificates are valid; None takes the present.
        validity: How long the server's certificate is valid.

    Raises:
        ValueError: No host is named.
    """
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _authority_name()
    return _issue(_authority(name, key, name, key, now), key, (), hosts, now, validity)


def renew(
    identity: ServerIdentity,
    hosts: Sequence[str],
    now: datetime | None = None,
    validity: timedelta = VALIDITY,
) -> ServerIdentity:
    """Make another server certificate that clients of the present one can verify, too.

    The authority stays, unless its own end comes close: then it vouches for a new one.

    Args:
        identity: The present one.
        hosts: DNS names by which clients reach the server.
        now: Instant from which the certificate is valid; None takes the present.
        validity: How long it is valid.

    Raises:
        ValueError: The authority's key was not kept or is not its key, or no host is named.
    """
    now = now or datetime.now(UTC)
    authority = x509.load_pem_x509_certificate(identity.ca)
    key = load_pem_private_key(identity.ca_key or b"", password=None)
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != authority.public_key()
    ):
        raise ValueError("the authority's key is not its own")
    if now >= authority.not_valid_after_utc:
        raise ValueError("the authority has ended")
    if now + AUTHORITY_RENEWED_BEFORE < authority.not_valid_after_utc:
        _, *vouchers = x509.load_pem_x509_certificates(identity.certificate)
        return _issue(authority, key, vouchers, hosts, now, validity)
    name, new_key = _authority_name(), ec.generate_private_key(ec.SECP256R1())
    vouched = _authority(name, new_key, authority.subject, key, now, authority.not_valid_after_utc)
    own = _authority(name, new_key, name, new_key, now)
    return _issue(own, new_key, (vouched,), hosts, now, validity)


def _issue(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    vouchers: Sequence[x509.Certificate],
    hosts: Sequence[str],
    now: datetime,
    validity: timedelta,
) -> ServerIdentity:
    """Sign a server certificate; `vouchers` are shown behind it until they end."""
    if not hosts:
        raise ValueError("hosts is empty: name at least one DNS name of the weights service")
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + validity, authority.not_valid_after_utc)
    name = _name("kvquant weights service")
    server = (
        _certificate(name, authority.subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False
        )
        .sign(authority_key, hashes.SHA256())
    )
    shown = (server, *(one for one in vouchers if now < one.not_valid_after_utc))
    return ServerIdentity(
        ca=authority.public_bytes(Encoding.PEM),
        certificate=b"".join(one.public_bytes(Encoding.PEM) for one in shown),
        key=_pem(key),
        ca_key=_pem(authority_key),
    )


def _authority(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    until: datetime | None = None,
) -> x509.Certificate:
    """Certify an authority: by itself, or by the one before it, which allows for one below."""
    return (
        _certificate(name, issuer, key.public_key(), now, until or now + AUTHORITY_VALIDITY)
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=1 if issuer == name else 0), critical=True
        )
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
        )
        .sign(issuer_key, hashes.SHA256())
    )


def _authority_name() -> x509.Name:
    """Return a name of its own: clients must not take a successor for its predecessor."""
    return _name(f"kvquant weights authority {secrets.token_hex(4)}")


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
