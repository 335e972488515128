"""Servers for this machine alone: their address, and the requests that they answer."""

HOST = "127.0.0.1"
_NAMES = frozenset({HOST, "localhost"})


def names_this_machine(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port.

    A page elsewhere whose name is made to lead here (DNS rebinding) must not read what is served.
    """
    return host.partition(":")[0].lower() in _NAMES
