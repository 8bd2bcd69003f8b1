"""Who holds a service account token, by the word of the API server (TokenReview)."""

from __future__ import annotations

from kvquant.adapters.connection import Connection

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class TokenReviewer:
    """Checks tokens that were issued for one audience.

    Needs the right to create `tokenreviews` (ClusterRole system:auth-delegator grants it).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def review(self, token: str, audience: str) -> str | None:
        """Return the user that the token stands for, or None when it is not good for the audience.

        For a service account the user is `system:serviceaccount:<namespace>:<name>`.

        Raises:
            ClusterError: The API server could not be asked, or does not let us ask.
        """
        review = self._connection.expect(
            "POST",
            PATH,
            subject="TokenReview",
            body={
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [audience]},
            },
        )
        status = review.get("status", {})
        # An authenticator that knows no audiences leaves the list empty; its yes does not say that
        # the token was meant for us.
        if not status.get("authenticated") or audience not in (status.get("audiences") or ()):
            return None
        username: str | None = status.get("user", {}).get("username")
        return username or None
