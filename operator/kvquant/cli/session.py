"""What one call of the CLI has at hand, and the options that every verb shares."""

from __future__ import annotations

import functools
import getpass
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import click
from yaml import YAMLError

from kvquant import errors
from kvquant.cli.errors import Failure, explain
from kvquant.cli.paint import Paint
from kvquant.cli.times import Seconds, stamp
from kvquant.ports import Clock, Cluster

OPERATOR_NAMESPACE = "kvquant-system"


@dataclass(frozen=True, slots=True)
class Access:
    """Which cluster, and how long to wait for it.

    Attributes:
        kubeconfig: File to read; default as kubectl.
        context: Context in it; default its current one.
        timeout: Seconds to wait for one answer; 0 waits as long as it takes.
    """

    kubeconfig: str | None = None
    context: str | None = None
    timeout: float = 10.0


class Proxied(Protocol):
    """Sends a request to something behind the API server's proxy; returns status and body."""

    def __call__(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        patience: float,
        /,
    ) -> tuple[int, str]:
        """Send it, and wait for so many seconds.

        Raises:
            errors.Unavailable: No answer came in time, or none at all.
        """


@dataclass(frozen=True, slots=True)
class Connected:
    """An open connection to a cluster.

    Attributes:
        cluster: Its objects.
        namespace: Namespace that the kubeconfig's context defaults to.
        fetch: Sends a GET to a path of the API server, and returns status and body.
        proxied: Sends a request to something behind its proxy.
    """

    cluster: Cluster
    namespace: str
    fetch: Callable[[str, Mapping[str, str]], tuple[int, str]]
    proxied: Proxied


def connect(access: Access) -> Connected:
    """Connect as kubectl would; inside a pod without a kubeconfig, as the pod.

    Raises:
        errors.ClusterError: The credentials cannot be used.
    """
    # Imported here, because `--help` and usage errors need none of it.
    from kvquant.adapters.cluster import KubernetesCluster
    from kvquant.adapters.connection import Connection

    # A week stands for ever; the client wants a number.
    timeout = access.timeout or 7 * 24 * 3600.0
    timeouts = (min(5.0, timeout), timeout)
    asked = access.kubeconfig or access.context or os.environ.get("KUBECONFIG")
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not asked:
            connection = Connection.in_cluster(timeouts)
        else:
            connection = Connection.from_kubeconfig(access.kubeconfig, access.context, timeouts)
    except (OSError, TypeError, ValueError, LookupError, AttributeError, YAMLError) as error:
        # The client lets what it stumbles over in a broken file through as it comes.
        where = access.kubeconfig or "$KUBECONFIG or ~/.kube/config"
        said = " ".join(str(error).split())
        raise errors.ClusterError(
            f"the kubeconfig {where} is broken ({said}): see `kubectl config view`"
        ) from error

    def fetch(path: str, query: Mapping[str, str]) -> tuple[int, str]:
        answer = connection.request("GET", path, query=query)
        return answer.status, answer.text

    def proxied(
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        patience: float,
    ) -> tuple[int, str]:
        answer = connection.request(method, path, body=body, headers=headers, patience=patience)
        return answer.status, answer.text

    return Connected(KubernetesCluster(connection), connection.namespace, fetch, proxied)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run as a user without a name.
        return f"uid-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The world around the process; tests bring their own."""

    connect: Callable[[Access], Connected] = connect
    now: Clock = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    user: Callable[[], str] = _user
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    paint: Callable[[], Paint] = Paint.of


@dataclass(slots=True)
class Session:
    """One call of the CLI, connected.

    Attributes:
        program: How the user calls us: `kvquant` or `kubectl kvquant`.
        namespace: Namespace that the call is about.
        cluster: The cluster.
        fetch: Sends a GET to the API server.
        proxied: Sends a request to something behind its proxy.
        around: The world around the process.
        access: Which cluster it is.
    """

    program: str
    namespace: str
    cluster: Cluster
    fetch: Callable[[str, Mapping[str, str]], tuple[int, str]]
    proxied: Proxied
    around: Surroundings
    access: Access

    def command(self, verb: str, name: str = "", namespace: str | None = None) -> str:
        """Return a command line that the user can copy."""
        where = f"-n {namespace or self.namespace}" if name else ""
        return " ".join(part for part in (self.program, verb, name, where) if part)

    def signed(self, reason: str | None, *, exact: bool = False) -> str:
        """Return who asks, when and why, as annotations and the kill switch keep it.

        Args:
            reason: Why, in the user's words.
            exact: Whether the instant is to the microsecond, which makes the text unique.
        """
        now = self.around.now()
        when = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if exact else stamp(now)
        return f"{when} by {self.around.user()}" + (f": {reason}" if reason else "")


class Verb(click.Command):
    """A command whose examples are spelled the way in which the program was called."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand, line by line."""
        _write_examples(self.epilog, ctx, formatter)


class VerbGroup(click.Group):
    """The same for a command that has verbs of its own."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand, line by line."""
        _write_examples(self.epilog, ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs as they were added."""
        return list(self.commands)


def _write_examples(epilog: str | None, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    if not epilog:
        return
    formatter.write_paragraph()
    formatter.write("Examples:\n")
    for line in epilog.strip().splitlines():
        text = line.strip().replace("{program}", ctx.find_root().info_name or "kvquant")
        formatter.write(f"  {text}\n")


_OPTIONS = (
    click.option("-n", "--namespace", help="Namespace. Default: that of the context."),
    click.option("--context", help="Context of the kubeconfig. Default: the current one."),
    click.option(
        "--kubeconfig",
        type=click.Path(dir_okay=False),
        help="Kubeconfig file. Default: $KUBECONFIG, else ~/.kube/config.",
    ),
    click.option(
        "--request-timeout",
        type=Seconds(),
        default="10s",
        show_default=True,
        help="Longest wait for one answer of the API server; 0 waits without end.",
    ),
)


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the shared options and, as its first argument, a session.

    Errors of the cluster end the command with a sentence and exit status 1.
    """

    @functools.wraps(function)
    def opened(connecting: Callable[[], Session], **arguments: Any) -> Any:
        return function(connecting(), **arguments)

    return with_cluster(opened)


def with_cluster(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same for a command that may do without: its first argument opens a session."""

    @functools.wraps(function)
    def wrapped(
        *,
        namespace: str | None,
        context: str | None,
        kubeconfig: str | None,
        request_timeout: float,
        **arguments: Any,
    ) -> Any:
        ctx = click.get_current_context()
        around = ctx.find_object(Surroundings) or Surroundings()
        if kubeconfig is not None and not Path(kubeconfig).expanduser().exists():
            raise click.BadParameter(f"{kubeconfig}: there is no such file", ctx, None)
        access = Access(kubeconfig, context, request_timeout)

        def connecting() -> Session:
            connected = around.connect(access)
            return Session(
                program=ctx.find_root().info_name or "kvquant",
                namespace=namespace or connected.namespace,
                cluster=connected.cluster,
                fetch=connected.fetch,
                proxied=connected.proxied,
                around=around,
                access=access,
            )

        try:
            return function(connecting, **arguments)
        except errors.KVQuantError as error:
            raise Failure(explain(error, context)) from error

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
