"""The weights service's certificate, kept in one Secret so that a restart does not change it.

Routers trust the CA that their ConfigMap holds. Were it made anew with each start of the operator,
no router could be reached until the kubelet has carried the new one to it.
"""

from __future__ import annotations

import base64
import logging

from kvquant.ports import Cluster
from kvquant.router.pki import ServerIdentity, make_identity

logger = logging.getLogger(__name__)

SECRET = "kvquant-xds-tls"  # noqa: S105 - the name of a Secret, not one


def load_or_make(cluster: Cluster, namespace: str, host: str) -> ServerIdentity:
    """Return the identity kept in the Secret; make and keep one when there is none.

    Raises:
        ClusterError: The Secret can neither be read nor written.
    """
    secret = cluster.get("Secret", namespace, SECRET)
    data = (secret or {}).get("data") or {}
    if {"ca.crt", "tls.crt", "tls.key"} <= data.keys():
        return ServerIdentity(
            ca=base64.b64decode(data["ca.crt"]),
            certificate=base64.b64decode(data["tls.crt"]),
            key=base64.b64decode(data["tls.key"]),
        )
    logger.info("Making the certificate of the weights service for %s", host)
    identity = make_identity([host])
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": SECRET, "namespace": namespace},
            "data": {
                "ca.crt": base64.b64encode(identity.ca).decode(),
                "tls.crt": base64.b64encode(identity.certificate).decode(),
                "tls.key": base64.b64encode(identity.key).decode(),
            },
        }
    )
    return identity
