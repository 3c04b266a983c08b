"""Runs schedules, and says how to see a broken one again."""

from collections.abc import Iterable

from tests.simulation.world import Transition, World


class BrokenError(Exception):
    """A schedule in which an invariant does not hold."""

    def __init__(self, seed: int, problem: BaseException) -> None:
        super().__init__(f"{problem}; to see it: python -m tests.simulation --seed {seed} --trace")
        self.seed = seed


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
