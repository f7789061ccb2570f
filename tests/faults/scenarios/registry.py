"""What a scenario is, and the table of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tests.faults.checker import FINDINGS
from tests.faults.run import Outcome, Run

PLANTED: Final = "planted"
STUCK: Final = "stuck"
"""Of a planted bug: what was waited for did not come, or a worker had to be started anew."""
_SIGNS: Final = ("not within ", " ended by itself: ")
Play = Callable[[Run], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way to hurt the system.

    Attributes:
        family: Module that it stands in.
        play: Does it; what is left is drained and checked after it.
        nodes: Brokers that it needs.
        replicas: Of its topics.
        is_calm: It leaves broker and network alone, so that others may run beside it.
        tmpfs_mb: Its cluster lives on a file system of its own, as small as this; 0 for none.
        bug: What is planted into every consumer; then it has to end with a finding of `kinds`.
    """

    name: str
    family: str
    play: Play
    nodes: int
    replicas: int
    is_calm: bool
    tmpfs_mb: int
    bug: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return (self.play.__doc__ or "").strip().splitlines()[0]

    @property
    def is_usual(self) -> bool:
        """Whether it runs without being asked for."""
        return self.family not in (PLANTED, "soak")

    def play_in(self, run: Run) -> Outcome:
        """Run it; a planted bug has to be found, and that is what is judged then."""
        run.bug = self.bug
        outcome = run.play(self.play)
        if not self.bug:
            return outcome
        signs = [f", {kind}: " for kind in self.kinds]
        if STUCK in self.kinds:
            signs += _SIGNS
        found = [p for p in outcome.problems if any(sign in p for sign in signs)]
        outcome.status = "ok" if found else "failed"
        if found:
            outcome.problems = found
        else:
            outcome.problems.insert(0, f"nobody found the bug {self.bug}")
        # What the bug has lost and doubled is none of the product's.
        counts = {f"bug: {kind}": outcome.figures.pop(kind, 0.0) for kind in FINDINGS}
        outcome.figures |= {name: n for name, n in counts.items() if n} or {f"bug: {STUCK}": 1}
        return outcome


SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(
    *, nodes: int = 1, replicas: int | None = None, is_calm: bool = False, tmpfs_mb: int = 0
) -> Callable[[Play], Play]:
    """Enter a function into the table, by its name with dashes."""

    def enter(play: Play) -> Play:
        name = play.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(
            name=name,
            family=play.__module__.rpartition(".")[2],
            play=play,
            nodes=nodes,
            replicas=nodes if replicas is None else replicas,
            is_calm=is_calm,
            tmpfs_mb=tmpfs_mb,
        )
        return play

    return enter


def plant(bug: str, name: str, *kinds: str) -> None:
    """Enter a scenario once more, with a bug that it has to find."""
    planted = f"{PLANTED}-{bug}"
    SCENARIOS[planted] = replace(
        SCENARIOS[name], name=planted, family=PLANTED, bug=bug, kinds=kinds
    )
