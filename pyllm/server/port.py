"""TCP ports for servers."""

from __future__ import annotations

import socket

from pyllm.errors import InvalidArgumentError, ServerError


def check_port(host: str, port: int) -> None:
    """Refuse a port that a server could not listen on.

    Raises:
        InvalidArgumentError: the number is no TCP port.
        ServerError: somebody listens there, or the address is not this machine's.
    """
    if not 1 <= port <= 65535:
        raise InvalidArgumentError(f"port {port} is not in [1, 65535]", "choose another, or leave it out for a free one")
    with _bindable(host) as probe:
        try:
            probe.bind((host, port))
        except PermissionError as failure:
            raise ServerError(f"port {port} on {host} may not be used: {failure.strerror}", "choose a port above 1023") from failure
        except OSError as failure:
            raise ServerError(f"port {port} on {host} is in use", "choose another with --port, or stop the program that listens there") from failure


def free_port(host: str) -> int:
    """A port that is free now. Another program may take it before it is used; the server then says so and ends.

    Raises:
        ServerError: the address is not this machine's.
    """
    with _bindable(host) as probe:
        try:
            probe.bind((host, 0))
        except OSError as failure:
            raise ServerError(
                f"address {host} cannot be listened on: {failure.strerror}",
                "use 127.0.0.1, 0.0.0.0 or an address of this machine",
            ) from failure
        return int(probe.getsockname()[1])


def _bindable(host: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as failure:
        raise ServerError(f"address `{host}` is not known: {failure}", "use 127.0.0.1, 0.0.0.0 or an address of this machine") from failure
    probe = socket.socket(family, socket.SOCK_STREAM)
    # As the server does: a port in TIME_WAIT after a restart is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe
