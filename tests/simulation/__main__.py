"""The command line: `python -m tests.simulation`."""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.runs import BrokenError, run


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule (default: 0)")
    parser.add_argument("--schedules", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--trace", action="store_true", help="print every event and order")
    return parser.parse_args(argv)


def main() -> int:
    """Run the schedules; the exit status is 1 where one of them breaks."""
    chosen = parse()
    began, events = time.perf_counter(), 0
    for seed in range(chosen.seed, chosen.seed + chosen.schedules):
        try:
            events += run(seed, trace=chosen.trace).events
        except BrokenError as error:
            print(f"seed {seed}: {error}")
            return 1
    seconds = time.perf_counter() - began
    print(f"{chosen.schedules} schedules from seed {chosen.seed}, {events} events: {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
