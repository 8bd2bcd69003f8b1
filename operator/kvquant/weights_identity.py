"""The weights service's certificate, kept in one Secret so that a restart does not change it.

Routers trust the CA that their ConfigMap holds. Were it made anew with each start of the operator,
no router could be reached until the kubelet has carried the new one to it. For the same reason the
CA's key is kept beside it: each next certificate is one that routers trust already.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from kvquant.errors import ClusterError
from kvquant.ports import Cluster
from kvquant.router.pki import VALIDITY, ServerIdentity, make_identity, renew

logger = logging.getLogger(__name__)

SECRET = "kvquant-xds-tls"  # noqa: S105 - the name of a Secret, not one


@dataclass(frozen=True, slots=True)
class Terms:
    """When a certificate is replaced.

    Attributes:
        validity: How long a new one is valid.
        renewed_before: Time before its end from which it is replaced.
        looked_after: Time between two looks at the one in use. A renewal that fails is tried again
            as often.
    """

    validity: timedelta = VALIDITY
    renewed_before: timedelta = timedelta(days=30)
    looked_after: timedelta = timedelta(hours=1)


TERMS = Terms()


def load_or_make(
    cluster: Cluster, namespace: str, host: str, terms: Terms = TERMS
) -> ServerIdentity:
    """Return the identity kept in the Secret; make and keep one when none there is of use.

    Routers that cannot verify the service keep their last weights, which nobody would notice: so a
    certificate for another host, one that ends soon or one that cannot be read is replaced. Where
    the authority's key was kept, routers need not be told.

    Raises:
        ClusterError: The Secret can neither be read nor written.
    """
    secret = cluster.get("Secret", namespace, SECRET)
    kept = _kept((secret or {}).get("data") or {})
    if kept is not None and _is_of_use(kept, host, terms):
        return kept
    identity = _next(kept, host, terms)
    data = {
        "ca.crt": identity.ca,
        "ca.key": identity.ca_key or b"",
        "tls.crt": identity.certificate,
        "tls.key": identity.key,
    }
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            # A Secret's type cannot be changed, and one that somebody else has made will do.
            "type": (secret or {}).get("type", "kubernetes.io/tls"),
            "metadata": {"name": SECRET, "namespace": namespace},
            "data": {name: base64.b64encode(pem).decode() for name, pem in data.items()},
        }
    )
    return identity


class Renewer:
    """Replaces the certificate in use before it ends, for as long as the operator runs.

    It asks the API server nothing until one is due.
    """

    def __init__(
        self,
        identity: ServerIdentity,
        load: Callable[[], ServerIdentity],
        use: Callable[[ServerIdentity], None],
        host: str,
        terms: Terms = TERMS,
    ) -> None:
        """Make a renewer that does nothing yet.

        Args:
            identity: What is in use.
            load: Returns what to use from now on, such as `load_or_make`.
            use: Takes each new one.
            host: Name by which routers reach the service.
            terms: When it is due.
        """
        self._identity = identity
        self._load = load
        self._use = use
        self._host = host
        self._terms = terms
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)

    def start(self) -> None:
        """Begin to look after the certificate."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a renewal under way is waited for no longer than a moment."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def look(self) -> None:
        """Replace the certificate if it is due; a failure is logged, and the old one serves on."""
        if _is_of_use(self._identity, self._host, self._terms):
            return
        try:
            identity = self._load()
        except ClusterError as error:
            logger.warning("The certificate of the weights service is not renewed yet: %s", error)
            return
        self._use(identity)
        self._identity = identity

    def _run(self) -> None:
        while not self._stopping.wait(self._terms.looked_after.total_seconds()):
            try:
                self.look()
            except Exception:
                # Whatever it is, the next look may do better, and there is a month of them.
                logger.exception("The certificate of the weights service is not renewed yet")


def _next(kept: ServerIdentity | None, host: str, terms: Terms) -> ServerIdentity:
    if kept is not None:
        try:
            identity = renew(kept, [host], validity=terms.validity)
        except (ValueError, TypeError) as error:
            logger.warning("The kept authority signs no more certificates: %s", error)
        else:
            logger.info("Renewed the certificate of the weights service for %s", host)
            return identity
    logger.info("Making authority and certificate of the weights service for %s", host)
    return make_identity([host], validity=terms.validity)


def _kept(data: Mapping[str, str]) -> ServerIdentity | None:
    try:
        ca, certificate, key = (
            base64.b64decode(data[name], validate=True) for name in ("ca.crt", "tls.crt", "tls.key")
        )
        ca_key = base64.b64decode(data.get("ca.key") or "", validate=True)
    except (KeyError, ValueError):
        return None
    return ServerIdentity(ca=ca, certificate=certificate, key=key, ca_key=ca_key or None)


def _is_of_use(identity: ServerIdentity, host: str, terms: Terms) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return False
    hosts = named.value.get_values_for_type(x509.DNSName)
    ends = certificate.not_valid_after_utc
    return host in hosts and datetime.now(UTC) + terms.renewed_before < ends
