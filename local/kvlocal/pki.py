"""The cluster's certificates and kubeconfigs."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate names: Kubernetes reads user and group from it."""

    user: str
    group: str | None = None

    @property
    def name(self) -> x509.Name:
        """The subject as X.509 writes it."""
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, self.user)]
        if self.group is not None:
            parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.group))
        return x509.Name(parts)


CLIENTS = {
    "admin": Subject("admin", "system:masters"),
    "kubelet": Subject("system:node:node1", "system:nodes"),
    "controller-manager": Subject("system:kube-controller-manager"),
    "scheduler": Subject("system:kube-scheduler"),
    "proxy": Subject("system:kube-proxy"),
    "front-proxy": Subject("front-proxy"),
}


class Authority:
    """A certificate authority of one cluster; everything it issues is written to its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = Subject("kvlocal").name
        self._certificate = (
            _builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._write("ca.crt", self._certificate.public_bytes(serialization.Encoding.PEM))
        self._write("ca.key", _pem(self._key))

    def issue(self, file: str, subject: Subject, names: tuple[str, ...] = ()) -> None:
        """Write `<file>.crt` and `<file>.key` for a subject and its DNS names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject.name, self._certificate.subject, key.public_key())
        builder = builder.add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        self._write(f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        self._write(f"{file}.key", _pem(key))

    def issue_service_account_keys(self) -> None:
        """Write the pair by which the API server signs and checks ServiceAccounts' tokens."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._write("sa.key", _pem(key))
        self._write(
            "sa.pub",
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        )

    def kubeconfig(self, client: str, server: str, path: Path, name: str = "kvlocal") -> Path:
        """Write a kubeconfig of a client that has its certificate already, and return its path."""
        read = {
            key: base64.b64encode((self.folder / file).read_bytes()).decode()
            for key, file in (
                ("certificate-authority-data", "ca.crt"),
                ("client-certificate-data", f"{client}.crt"),
                ("client-key-data", f"{client}.key"),
            )
        }
        authority = read.pop("certificate-authority-data")
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": server, "certificate-authority-data": authority},
                }
            ],
            "users": [{"name": client, "user": read}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": client}}],
            "current-context": name,
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))
        return path

    def _write(self, file: str, content: bytes) -> None:
        path = self.folder / file
        path.touch(mode=0o600)
        path.write_bytes(content)


def make(folder: Path, addresses: tuple[str, ...]) -> Authority:
    """Make everything that a cluster's components show each other.

    Args:
        folder: Where to write it.
        addresses: DNS names and addresses by which the API server is reached.
    """
    authority = Authority(folder)
    authority.issue("apiserver", Subject("kube-apiserver"), addresses)
    for file, subject in CLIENTS.items():
        authority.issue(file, subject, addresses if file == "kubelet" else ())
    authority.issue_service_account_keys()
    return authority


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
