"""The weights service's certificate, kept in one Secret so that a restart does not change it.

Routers trust the CA that their ConfigMap holds. Were it made anew with each start of the operator,
no router could be reached until the kubelet has carried the new one to it.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509

from kvquant.ports import Cluster
from kvquant.router.pki import ServerIdentity, make_identity

logger = logging.getLogger(__name__)

RENEWED_BEFORE = timedelta(days=30)
"""Time before a certificate's end from which a start of the operator replaces it."""

SECRET = "kvquant-xds-tls"  # noqa: S105 - the name of a Secret, not one


def load_or_make(cluster: Cluster, namespace: str, host: str) -> ServerIdentity:
    """Return the identity kept in the Secret; make and keep one when none there is of use.

    Routers that cannot verify the service keep their last weights, which nobody would notice: so a
    certificate for another host, one that ends soon or one that cannot be read is replaced.

    Raises:
        ClusterError: The Secret can neither be read nor written.
    """
    secret = cluster.get("Secret", namespace, SECRET)
    kept = _kept((secret or {}).get("data") or {})
    if kept is not None and _is_of_use(kept, host):
        return kept
    logger.info("Making the certificate of the weights service for %s", host)
    identity = make_identity([host])
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            # A Secret's type cannot be changed, and one that somebody else has made will do.
            "type": (secret or {}).get("type", "kubernetes.io/tls"),
            "metadata": {"name": SECRET, "namespace": namespace},
            "data": {
                "ca.crt": base64.b64encode(identity.ca).decode(),
                "tls.crt": base64.b64encode(identity.certificate).decode(),
                "tls.key": base64.b64encode(identity.key).decode(),
            },
        }
    )
    return identity


def _kept(data: Mapping[str, str]) -> ServerIdentity | None:
    try:
        ca, certificate, key = (
            base64.b64decode(data[name], validate=True) for name in ("ca.crt", "tls.crt", "tls.key")
        )
    except (KeyError, ValueError):
        return None
    return ServerIdentity(ca=ca, certificate=certificate, key=key)


def _is_of_use(identity: ServerIdentity, host: str) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return False
    hosts = named.value.get_values_for_type(x509.DNSName)
    return host in hosts and datetime.now(UTC) + RENEWED_BEFORE < certificate.not_valid_after_utc
