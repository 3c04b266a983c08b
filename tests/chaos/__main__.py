"""`python -m tests.chaos`: kills runners under many streams, and looks for what was lost."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from headrace_server.store import Store
from tests.chaos.report import show
from tests.chaos.run import Plan, run
from tests.e2e.harness import MODEL

_HOME = Path(__file__).parents[2] / ".cache" / "home"


def main() -> int:
    """Gives the exit status: 1 where a stream failed or differed, or something was left behind."""
    plan = parse()
    print(f"chaos: seed {plan.seed}", file=sys.stderr)
    try:
        return asyncio.run(_main(plan))
    except TimeoutError:
        print(f"chaos: not done within {plan.limit:.0f} s", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("chaos: stopped", file=sys.stderr)
    return 1


async def _main(plan: Plan) -> int:
    task = asyncio.current_task()
    assert task
    # The controller is to be stopped, also when this process is told to go.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await Store(plan.home).pull(MODEL)
    result = await run(plan, lambda text: print(f"chaos: {text}", file=sys.stderr))
    show(result, Console())
    return 1 if result.failed else 0


def parse(argv: Sequence[str] | None = None) -> Plan:
    """Reads the command line. Exits with status 2 and a usage message when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=Plan.kills, metavar="N", help="default: %(default)s")
    add("--greedy", type=int, default=Plan.greedy, metavar="N", help="streams at temperature 0")
    add("--seeded", type=int, default=Plan.seeded, metavar="N", help="streams that draw")
    add("--tokens", type=int, default=Plan.tokens, metavar="N", help="of a stream, at most")
    add("--seed", type=int, metavar="N", help="of the moments; default: another one each time")
    add("--limit", type=float, default=Plan.limit, metavar="SECONDS", help="for all of it")
    add("--home", type=Path, default=_HOME, metavar="DIR", help="store with the model")
    values = vars(parser.parse_args(argv))
    seed = values.pop("seed")
    return Plan(**values, seed=secrets.randbits(32) if seed is None else seed)


if __name__ == "__main__":
    sys.exit(main())
