"""Errors as vLLM answers them."""

from typing import Any


class ApiError(Exception):
    """An error answer.

    Attributes:
        status: the HTTP status.
        kind: vLLM's name of the error.
        field: the parameter at fault, None when it is none.
    """

    def __init__(self, status: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.field = field

    def body(self) -> dict[str, Any]:
        """Return the JSON that clients get."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.field,
            "code": self.status,
        }
        return {"error": error}


def dead() -> ApiError:
    """Return the error of every request once the engine core has died."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return ApiError(500, "InternalServerError", message)


def bad(message: str, field: str | None = None) -> ApiError:
    """Return the error of a request that is wrong."""
    return ApiError(400, "BadRequestError", message, field)
