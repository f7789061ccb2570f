"""`./run.sh fuzz`: hostile inputs by the million on the one-fate promise, or random fills."""

import argparse
import importlib.util
import sys
from pathlib import Path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run.sh fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs at most")
    parser.add_argument("--seconds", type=float, default=0, help="time at most; 0: no bound")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other inputs")
    parser.add_argument("--repeat", type=Path, help="check the input in this file alone")
    parser.add_argument("--money", type=int, metavar="FILLS", help="random fills, and no inputs")
    parser.add_argument("--random", action="store_true", help="random changes, not led by coverage")
    return parser.parse_args()


def main() -> int:
    """Run what is asked for; 1 if anything failed."""
    chosen = _arguments()
    if chosen.money is not None:
        from tests.fuzz.money import run_fills  # noqa: PLC0415 - see below

        return run_fills(chosen.money, seed=chosen.seed)
    if not chosen.repeat and not chosen.random:
        if importlib.util.find_spec("atheris") is not None:
            # Before anything else imports the code that it instruments.
            from tests.fuzz.guided import guided  # noqa: PLC0415

            guided(chosen.runs, seconds=chosen.seconds, seed=chosen.seed)
        print("atheris is not installed (it has no wheel for this Python or system):")
        print("random changes instead, which no coverage leads")
    from tests.fuzz.campaign import Campaign, random_changes  # noqa: PLC0415

    if chosen.repeat:
        campaign = Campaign("hand", runs=1)
        campaign.run(chosen.repeat.read_bytes())
    else:
        bounds = {"runs": chosen.runs, "seconds": chosen.seconds}
        campaign = Campaign("random changes", **bounds, seed=chosen.seed)
        random_changes(campaign)
    print(campaign.report())
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
