"""What a scenario is, and the table of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.faults.run import Run

Play = Callable[[Run], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way to hurt the system.

    Attributes:
        play: Does it; what is left is drained and checked after it.
        nodes: Brokers that it needs.
        replicas: Of its topics.
        is_calm: It leaves broker and network alone, so that others may run beside it.
        tmpfs_mb: Its cluster lives on a file system of its own, as small as this; 0 for none.
        is_soak: It runs only where it is asked for.
    """

    name: str
    play: Play
    nodes: int
    replicas: int
    is_calm: bool
    tmpfs_mb: int
    is_soak: bool

    @property
    def family(self) -> str:
        """Module that it stands in."""
        return self.play.__module__.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return (self.play.__doc__ or "").strip().splitlines()[0]


SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(
    *,
    nodes: int = 1,
    replicas: int | None = None,
    is_calm: bool = False,
    tmpfs_mb: int = 0,
    is_soak: bool = False,
) -> Callable[[Play], Play]:
    """Enter a function into the table, by its name with dashes."""

    def enter(play: Play) -> Play:
        name = play.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(
            name=name,
            play=play,
            nodes=nodes,
            replicas=nodes if replicas is None else replicas,
            is_calm=is_calm,
            tmpfs_mb=tmpfs_mb,
            is_soak=is_soak,
        )
        return play

    return enter
