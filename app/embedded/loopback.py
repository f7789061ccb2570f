"""Ports of the loopback interface: whether they are free, and which to take."""

import random
import socket
from collections.abc import Iterable

from app.errors import EmbeddedBrokerError

HOST = "127.0.0.1"
# Below the range from which systems take the near ends of outgoing connections, so that a port
# remembered for the next start is not taken by one of those meanwhile.
_PORTS = range(20_000, 32_000)
_MAX_PORT = 65_535


def addresses(ports: Iterable[int]) -> str:
    """Write ports of this machine as a list of bootstrap servers."""
    return ",".join(f"{HOST}:{port}" for port in ports)


def is_port_free(port: int) -> bool:
    """Tell whether a server could listen on this port of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Java does it: an old connection that is closing does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def pick_ports(count: int, *, taken: Iterable[int] = ()) -> tuple[int, ...]:
    """Pick free ports at random, so that brokers started side by side do not meet.

    Raises:
        EmbeddedBrokerError: There are not enough.
    """
    avoid = set(taken)
    picked: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(picked) == count:
            break
        if port not in avoid and is_port_free(port):
            picked.append(port)
    if len(picked) < count:
        raise EmbeddedBrokerError(f"no free ports from {_PORTS.start} to {_PORTS.stop - 1}")
    return tuple(picked)


def consecutive_ports(first: int, count: int) -> tuple[int, ...]:
    """Lay out the ports of `count` brokers from `first` on.

    Raises:
        EmbeddedBrokerError: They do not fit below 65536.
    """
    if not 0 < first <= _MAX_PORT - count + 1:
        raise EmbeddedBrokerError(f"port {first} is not possible for {count} nodes; use --port")
    return tuple(range(first, first + count))


def require_free(ports: Iterable[int], remedy: str) -> None:
    """Refuse ports that another program listens on.

    Args:
        ports: To be listened on.
        remedy: What the reader can do, in the imperative.

    Raises:
        EmbeddedBrokerError: Names every port that is taken.
    """
    if taken := [str(port) for port in ports if not is_port_free(port)]:
        noun = "port" if len(taken) == 1 else "ports"
        verb = "is" if len(taken) == 1 else "are"
        raise EmbeddedBrokerError(
            f"{noun} {', '.join(taken)} {verb} taken by another program on {HOST}; {remedy}"
        )
