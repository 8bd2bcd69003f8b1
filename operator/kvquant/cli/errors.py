"""What ends a command, told in a sentence with its remedy."""

from __future__ import annotations

import re
from typing import IO, Any

import click

from kvquant import errors


class Failure(click.ClickException):
    """The command was understood and could not be done: exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence to stderr."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


def explain(error: errors.KVQuantError, context: str | None = None) -> str:
    """Return an error of the cluster or of Prometheus as a sentence that says what to do.

    Args:
        error: What was raised.
        context: Context of the kubeconfig that the user named, if any.
    """
    text = str(error).strip()
    which = f"the context {context!r}" if context else "the current context"
    if isinstance(error, errors.Unavailable):
        if error.__cause__ is None:
            return f"the API server cannot answer now ({text}); try again in a moment"
        return (
            f"no answer from the API server{_address(error.__cause__)}: {root_cause(error)}. Check "
            f"that the cluster is up and that {which} is the one you mean "
            "(kubectl config get-contexts)"
        )
    if "(HTTP 401)" in text:
        return (
            f"the API server does not accept the credentials of {which}: log in anew, or name "
            "another context with --context"
        )
    if "(HTTP 403)" in text:
        return f"{text}. {remedy(text)}"
    return text


_DENIED = re.compile(r'cannot (?P<verb>\w+) resource "(?P<resource>[\w/]+)"')
_NAMESPACE = re.compile(r'in the namespace "(?P<namespace>[^"]+)"')


def remedy(denial: str) -> str:
    """Return which of the roles that we ship holds the right that was missing.

    Args:
        denial: What the API server said; RBAC always in the same words.
    """
    found, where = _DENIED.search(denial), _NAMESPACE.search(denial)
    place = f"namespace {where['namespace']}" if where else "the whole cluster"
    if found is None:
        return "See what you may do: kubectl auth can-i --list"
    verb, resource = found["verb"], found["resource"]
    if resource == "configmaps":
        return f"Ask for the Role kvquant-kill-switch in {place}"
    if resource == "kvquantrollouts":
        role = "kvquant-view" if verb in ("get", "list", "watch") else "kvquant-edit"
        binding = "RoleBinding" if where else "ClusterRoleBinding"
        return f"Ask for a {binding} to the ClusterRole {role} in {place}"
    return f"Ask for the right to {verb} {resource} in {place}"


def root_cause(error: BaseException) -> str:
    """Return the innermost cause of a failed connection, without addresses of objects."""
    inner: BaseException = error
    while True:
        reason = getattr(inner, "reason", None)
        following = reason if isinstance(reason, BaseException) else inner.__cause__
        if following is None:
            break
        inner = following
    said = getattr(inner, "strerror", None) or str(inner)
    return said.rsplit(": ", 1)[-1].strip().rstrip(".") or type(inner).__name__


def _address(cause: BaseException) -> str:
    pool = getattr(cause, "pool", None)
    host, port = getattr(pool, "host", None), getattr(pool, "port", None)
    return f" at {host}:{port}" if host and port else ""
