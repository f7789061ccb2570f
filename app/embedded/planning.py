"""Settle the plan of a cluster: what was asked for, against what the data directory remembers."""

from dataclasses import dataclass

import msgspec

from app.embedded.cluster import Cluster, random_cluster_id
from app.embedded.loopback import consecutive_ports, is_port_free, pick_ports, require_free
from app.errors import EmbeddedBrokerError

_OTHER_PORT = "choose another one (--port), or end that program"
_STOP_FIRST = "stop the broker first (`trade-stream broker stop`), then start it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller of a start asks for.

    Args:
        nodes: Number of nodes.
        port: Of the first broker; 0 takes what is remembered, or any.
        scram_user: User of the secure listener; None for no such listener.
        advertised_ports: Of relays in front of the brokers; empty where there are none.
    """

    nodes: int
    port: int
    scram_user: str | None
    advertised_ports: tuple[int, ...] = ()


def require_same_cluster(plan: Cluster, request: Request) -> None:
    """Refuse a request that contradicts what was fixed when the data was formatted.

    Raises:
        EmbeddedBrokerError: The number of nodes or the user differs.
    """
    if plan.nodes != request.nodes:
        raise EmbeddedBrokerError(
            f"this data directory was formatted for {plan.nodes} node(s), not {request.nodes}: "
            f"start it with --nodes {plan.nodes}, choose another one (--data-dir), or delete it "
            "with `trade-stream broker purge`"
        )
    if plan.scram_user != request.scram_user:
        raise EmbeddedBrokerError(
            f"this data directory was formatted for user {plan.scram_user}, not "
            f"{request.scram_user}: choose another one, or purge it"
        )


def require_same_ports(plan: Cluster, request: Request) -> None:
    """Refuse another port while the cluster runs.

    Raises:
        EmbeddedBrokerError: Another port was asked for.
    """
    if request.port not in (0, plan.broker_ports[0]):
        raise EmbeddedBrokerError(f"already running at {plan.bootstrap}; {_STOP_FIRST}")


def new_plan(request: Request, kafka_version: str) -> Cluster:
    """Plan a cluster that does not exist yet; its ports come with `with_ports`."""
    return Cluster(
        kafka_version=kafka_version,
        cluster_id=random_cluster_id(),
        nodes=request.nodes,
        broker_ports=(),
        controller_ports=(),
        scram_user=request.scram_user,
    )


def with_ports(plan: Cluster, request: Request, running: frozenset[int]) -> Cluster:
    """Complete a plan by ports that are free for every node about to start.

    Args:
        plan: As remembered, or new.
        request: Its port counts when none of the nodes runs.
        running: Ids of the nodes that run already: as long as there is one, all ports stay.

    Raises:
        EmbeddedBrokerError: A port that is not ours to choose is taken by another program.
    """
    if running:
        require_same_ports(plan, request)
        for node in set(plan.node_ids) - running:
            ports = (
                plan.broker_ports,
                plan.controller_ports,
                plan.secure_ports,
                plan.internal_ports,
            )
            require_free([of_kind[node - 1] for of_kind in ports if of_kind], _STOP_FIRST)
        return plan
    brokers = plan.broker_ports
    if request.port:
        brokers = consecutive_ports(request.port, plan.nodes)
        require_free(brokers, _OTHER_PORT)
    brokers = _free_ports(brokers, plan.nodes, taken=())
    controllers = _free_ports(plan.controller_ports, plan.nodes, taken=brokers)
    secure: tuple[int, ...] = ()
    if plan.scram_user is not None:
        secure = _free_ports(plan.secure_ports, plan.nodes, taken=brokers + controllers)
    internal: tuple[int, ...] = ()
    if request.advertised_ports:
        taken = brokers + controllers + secure + request.advertised_ports
        internal = _free_ports(plan.internal_ports, plan.nodes, taken=taken)
    return msgspec.structs.replace(
        plan,
        broker_ports=brokers,
        controller_ports=controllers,
        secure_ports=secure,
        internal_ports=internal,
        advertised_ports=request.advertised_ports,
    )


def _free_ports(
    remembered: tuple[int, ...], count: int, *, taken: tuple[int, ...]
) -> tuple[int, ...]:
    usable = remembered and not set(remembered) & set(taken) and all(map(is_port_free, remembered))
    return remembered if usable else pick_ports(count, taken=taken)
