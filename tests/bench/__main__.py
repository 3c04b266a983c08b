"""`python -m tests.bench`: speed beside the bare loop and other servers, start-up, footprint."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import footprint, report, speed, startup
from tests.bench.children import BenchError
from tests.bench.contenders import CONTENDERS
from tests.bench.prompts import MAX_PROMPTS
from tests.bench.setting import Setting, prepare

_WORK = Path(__file__).parents[2] / ".cache" / "bench"
_NAMES = [contender.name for contender in CONTENDERS]


def main() -> int:
    """Gives the exit status: 1 where something could not be measured."""
    arguments = parse()
    try:
        return asyncio.run(_main(arguments))
    except BenchError as error:
        print(f"bench: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: stopped", file=sys.stderr)
    return 1


async def _main(arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task
    # Children are to be stopped by whoever started them, also when that one is told to go.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="hr-bench-", dir="/tmp") as sockets:
        setting = await prepare(arguments.work, Path(sockets))
        console = Console()
        console.width = max(console.width, report.WIDTH)
        match arguments.command:
            case "startup":
                found = await startup.measure(setting, arguments.times)
                rows = [
                    (name, f"{one.median:.2f} ({one.low:.2f}–{one.high:.2f})")
                    for name, one in found.items()
                ]
                console.print(report.table("start-up", rows, setting.facts()))
            case "import":
                rows = await footprint.measure(setting, arguments.times)
                console.print(report.table("footprint", rows, setting.facts()))
            case _:
                return await _speed(setting, arguments, console)
    return 0


async def _speed(setting: Setting, arguments: argparse.Namespace, console: Console) -> int:
    plan = speed.Plan(
        contenders=[one for one in CONTENDERS if one.name not in arguments.skip],
        rounds=arguments.rounds,
        streams=arguments.streams,
        tokens=arguments.tokens,
        costly=arguments.full,
    )
    results = await speed.run(setting, plan, lambda text: print(text, file=sys.stderr))
    if arguments.json:
        document = report.to_json(results, setting.facts())
        if arguments.json == "-":
            print(document)
        else:
            Path(arguments.json).write_text(document + "\n")
    if arguments.json != "-":
        report.show(results, setting.facts(), console)
    return 1 if results.failures else 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("command", nargs="?", choices=("speed", "startup", "import"), default="speed")
    add("--rounds", type=_positive, metavar="N", help="rounds of every contender (default: 3)")
    add("--tokens", type=_positive, metavar="N", help="output tokens a stream (default: 64)")
    add("--streams", type=_counts, metavar="N,N", help="streams at once (default: 1,8,32)")
    add("--skip", action="append", choices=_NAMES, default=[], help="leave a contender out")
    add("--quick", action="store_true", help="one round of 16 tokens at 1 and 8 streams")
    add("--full", action="store_true", help="stock mlx_lm.server at 32 streams too: minutes more")
    add("--json", metavar="FILE", help="write the figures there as JSON; - is standard output")
    add("--times", type=_positive, default=5, metavar="N", help="starts or imports to time")
    add("--work", type=Path, default=_WORK, metavar="DIR", help="where converted models are kept")
    values = parser.parse_args(argv)
    rounds, tokens, streams = (1, 16, (1, 8)) if values.quick else (3, 64, (1, 8, 32))
    values.rounds = values.rounds or rounds
    values.tokens = values.tokens or tokens
    values.streams = values.streams or streams
    return values


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _counts(text: str) -> tuple[int, ...]:
    values = tuple(dict.fromkeys(_positive(part) for part in text.split(",")))
    if sum(values) >= MAX_PROMPTS:
        raise argparse.ArgumentTypeError(f"{text} need more than {MAX_PROMPTS} different prompts")
    return values


if __name__ == "__main__":
    sys.exit(main())
