"""`python -m tests.bench`: figures of Headrace, beside the bare loop and other servers."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from headrace.errors import HeadraceError
from tests.bench import (
    fairness,
    footprint,
    hop,
    images,
    llama,
    prefill,
    prefix,
    report,
    servers,
    soak,
    speed,
    startup,
    structured,
    telemetry,
)
from tests.bench.children import BenchError, explain
from tests.bench.contenders import CONTENDERS
from tests.bench.prompts import MAX_PROMPTS, long_text
from tests.bench.report import Outcome
from tests.bench.setting import MODEL, Setting, prepare, token_counter

_WORK = Path(__file__).parents[2] / ".cache" / "bench"
_NAMES = [contender.name for contender in CONTENDERS]
_EPILOG = """\
what to measure:
  speed     tokens a second beside the bare loop and the peers (default)
  prefill   tokens of a prompt a second, and the memory that it takes
  prefix    time to first token with a shared prefix, cold and warm
  fairness  inter-token time of running streams while a long prompt arrives
  soak      memory of a runner over many requests, a third of them cancelled
  hop       what the controller adds to a runner that computes nothing
  images    images a second beside the pipeline's own loop, and the first preview
  startup   starts of `headrace serve` and `headrace run`, and a runner's return after SIGKILL
  import    import of the SDK, memory of an idle controller
  telemetry tokens a second without telemetry, with the local store, and exported over OTLP
  structured tokens a second of streams that follow a JSON Schema, beside free ones
  peers     nothing: builds llama.cpp's server, which takes part from then on
"""


def main() -> int:
    """Gives the exit status: 1 where something could not be measured or is not as it has to be."""
    arguments = parse()
    try:
        return asyncio.run(_main(arguments))
    except (BenchError, HeadraceError, ExceptionGroup) as error:
        print(f"bench: {explain(error)}", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: stopped", file=sys.stderr)
    return 1


async def _main(arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task
    # Children are to be stopped by whoever started them, also when that one is told to go.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if arguments.command == "peers":
        await llama.install(arguments.work, MODEL, os.cpu_count() or 1)
        return 0
    with tempfile.TemporaryDirectory(prefix="hr-bench-", dir="/tmp") as sockets:
        setting = await prepare(arguments.work, Path(sockets))
        if setting.llama is None and arguments.command in _WITH_PEERS:
            _note("llama.cpp's server is left out: it has not been built, see `make bench-peers`")
            arguments.skip = [*arguments.skip, "llama"]
        outcome = await _COMMANDS[arguments.command](setting, arguments)
    if arguments.json:
        document = report.to_json(outcome, setting.facts())
        if arguments.json == "-":
            print(document)
        else:
            Path(arguments.json).write_text(document + "\n")
    if arguments.json != "-":
        console = Console()
        console.width = max(console.width, report.WIDTH)
        report.show(outcome, setting.facts(), console)
    return 1 if outcome.failures else 0


async def _speed(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    plan = speed.Plan(
        contenders=[one for one in CONTENDERS if one.name not in arguments.skip],
        rounds=arguments.rounds,
        streams=arguments.streams,
        tokens=arguments.tokens,
        costly=arguments.full,
    )
    return report.speed(await speed.run(setting, plan, _note))


async def _prefill(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    texts = prefill.texts(arguments.rounds, token_counter(setting))
    chosen = servers.compared(arguments.skip, slots=1, context=prefill.CONTEXT)
    observe = partial(prefill.observe, texts=texts)
    return prefill.outcome(*await servers.with_each(setting, chosen, observe, _note))


async def _prefix(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    count = token_counter(setting)
    prefixes = [long_text(index, prefix.PREFIX_TOKENS, count) for index in range(arguments.rounds)]
    observe = partial(prefix.observe, prefixes=prefixes)
    chosen = servers.compared(arguments.skip, slots=1, context=prefix.CONTEXT)
    return prefix.outcome(*await servers.with_each(setting, chosen, observe, _note))


async def _fairness(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    long_prompt = long_text(0, fairness.PROMPT_TOKENS, token_counter(setting))
    observe = partial(fairness.observe, tokens=arguments.tokens, long_prompt=long_prompt)
    slots = fairness.STREAMS + 1
    chosen = servers.compared(arguments.skip, slots=slots, context=fairness.CONTEXT)
    return fairness.outcome(*await servers.with_each(setting, chosen, observe, _note))


async def _soak(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    async with servers.runner_process(setting, *soak.RUNNER_OPTIONS) as address:
        return soak.outcome(
            await soak.soak(address, MODEL, arguments.requests or soak.REQUESTS, _note)
        )


async def _hop(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    return hop.outcome(await hop.measure(setting, arguments.requests or hop.REQUESTS, _note))


async def _structured(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    rounds, tokens = arguments.rounds, arguments.tokens
    return structured.outcome(await structured.measure(setting, rounds, tokens, _note))


async def _images(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    return images.outcome(await images.measure(setting, arguments.rounds, _note))


async def _startup(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    found = await startup.measure(setting, arguments.times)
    rows = [(name, report.cell(one, 2)) for name, one in found.items()]
    return Outcome(report.grid(("start-up", ""), rows), found)


async def _import(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    rows = await footprint.measure(setting, arguments.times)
    return Outcome(report.grid(("footprint", ""), rows), dict(rows))


async def _telemetry(setting: Setting, arguments: argparse.Namespace) -> Outcome:
    streams = max(arguments.streams)
    return await telemetry.run(setting, streams, arguments.tokens, arguments.rounds, _note)


_COMMANDS: dict[str, Callable[[Setting, argparse.Namespace], Awaitable[Outcome]]] = {
    "speed": _speed,
    "prefill": _prefill,
    "prefix": _prefix,
    "fairness": _fairness,
    "soak": _soak,
    "hop": _hop,
    "images": _images,
    "startup": _startup,
    "import": _import,
    "telemetry": _telemetry,
    "structured": _structured,
}
_WITH_PEERS = ("speed", "prefill", "prefix", "fairness")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line. Exits with status 2 and a usage message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", choices=(*_COMMANDS, "peers"), default="speed", metavar="WHAT")
    add(
        "--rounds",
        type=_positive,
        metavar="N",
        help="rounds of speed, prefill, prefix, images, telemetry and structured (default: 3)",
    )
    add("--tokens", type=_positive, metavar="N", help="output tokens a stream (default: 64)")
    add("--streams", type=_counts, metavar="N,N", help="streams at once (default: 1,8,16,32)")
    add(
        "--requests",
        type=_requests,
        metavar="N",
        help=f"of soak (default: {soak.REQUESTS}), of each way of hop (default: {hop.REQUESTS})",
    )
    add("--skip", action="append", choices=_NAMES, default=[], help="leave a contender out")
    add("--quick", action="store_true", help="one round of 16 tokens at 1 and 8 streams")
    add("--full", action="store_true", help="stock mlx_lm.server at 16 and 32 streams too: minutes")
    add("--json", metavar="FILE", help="write the figures there as JSON; - is standard output")
    add("--times", type=_positive, default=5, metavar="N", help="starts or imports to time")
    add("--work", type=Path, default=_WORK, metavar="DIR", help="where peers and models are kept")
    values = parser.parse_args(argv)
    rounds, tokens, streams = (1, 16, (1, 8)) if values.quick else (3, 64, (1, 8, 16, 32))
    values.rounds = values.rounds or rounds
    values.tokens = values.tokens or tokens
    values.streams = values.streams or streams
    return values


def _positive(text: str, least: int = 1) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is below {least}")
    return value


def _requests(text: str) -> int:
    return _positive(text, soak.SETTLED + 1)


def _counts(text: str) -> tuple[int, ...]:
    values = tuple(dict.fromkeys(_positive(part) for part in text.split(",")))
    if sum(values) >= MAX_PROMPTS:
        raise argparse.ArgumentTypeError(f"{text} need more than {MAX_PROMPTS} different prompts")
    return values


if __name__ == "__main__":
    sys.exit(main())
