"""Runs schedules, and says how to see a broken one again."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from headrace.host.machine import describe
from tests.simulation.world import Transition, World

_CHUNK = 1_000
"""Schedules that a process runs before it takes others."""


class BrokenError(Exception):
    """A schedule in which an invariant does not hold."""

    def __init__(self, seed: int, problem: BaseException) -> None:
        super().__init__(f"{problem}; to see it: python -m tests.simulation --seed {seed} --trace")
        self.seed = seed
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[int, BaseException]]:
        return type(self), (self.seed, self.problem)  # It may come from another process.


def run(seed: int, *, trace: bool = False) -> World:
    """Run one schedule. Raises BrokenError."""
    world = World(seed, trace=trace)
    try:
        world.run()
    except Exception as problem:
        raise BrokenError(seed, problem) from problem
    return world


def run_all(seeds: Iterable[int]) -> set[Transition]:
    """Run the schedules of these seeds; gives the transitions that were seen."""
    seen: set[Transition] = set()
    for seed in seeds:
        seen |= run(seed).transitions
    return seen


def run_many(seeds: range) -> set[Transition]:
    """The same on all cores, for many schedules."""
    chunks = [seeds[begin : begin + _CHUNK] for begin in range(0, len(seeds), _CHUNK)]
    spawn = multiprocessing.get_context("spawn")  # A fork of a process with threads may hang.
    with ProcessPoolExecutor(describe().cpus, mp_context=spawn) as pool:
        try:
            return set().union(*pool.map(run_all, chunks))
        finally:
            pool.shutdown(cancel_futures=True)  # Where one is broken, the others need not run.
