"""The certificate of the weights service, from an authority that signs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = timedelta(days=3650)
"""A router that cannot verify the service keeps its last weights without anybody noticing, so the
certificate outlives every installation; a new Secret replaces it at any time."""
CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a TLS server needs, PEM.

    Attributes:
        ca: Certificate by which clients verify the server.
        certificate: The server's own certificate.
        key: The server's private key; never shown in a repr.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def make_identity(hosts: Sequence[str], now: datetime | None = None) -> ServerIdentity:
    """Make an authority and one server certificate; the authority's key is not kept.

    Args:
        hosts: DNS names by which clients reach the server.
        now: Instant from which the certificates are valid; None takes the present.

    Raises:
        ValueError: No host is named.
    """
    if not hosts:
        raise ValueError("hosts is empty: name at least one DNS name of the weights service")
    now = now or datetime.now(UTC)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = _name("kvquant weights authority")
    authority = (
        _certificate(ca_name, ca_name, ca_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _certificate(_name("kvquant weights service"), ca_name, server_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return ServerIdentity(
        ca=authority.public_bytes(Encoding.PEM),
        certificate=server.public_bytes(Encoding.PEM),
        key=server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
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
