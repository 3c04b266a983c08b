"""What one schedule is like: its models, its bounds, and what may go wrong in it. From a seed."""

import math
from dataclasses import dataclass
from random import Random

from headrace_server.scheduling.state import Limits, Policy

BUDGET = 100

# Seconds that the world takes at most, where it behaves.
LOAD = 2.0
SERVICE = 3.0
STOP = 0.5
PATIENCE = 4.0

TRAITS = (
    "cancels",
    "crashes",
    "deadlines",
    "departures",
    "drain",
    "estimates",
    "lies",
    "pins",
    "policies",
    "pressure",
    "priorities",
    "stalls",
    "unloads",
)
"""Each schedule has some of them: what never happens together hides less that way."""

UNFAIR = frozenset(
    {"crashes", "departures", "lies", "pins", "pressure", "priorities", "stalls", "unloads"}
)
"""With these no bound on a wait can be told."""


@dataclass(frozen=True)
class Model:
    """A model of the scenario."""

    key: str
    needs: int
    """As estimated. What it really takes, its reports tell."""
    policy: Policy


@dataclass(frozen=True)
class Scenario:
    """The rules of one schedule."""

    models: tuple[Model, ...]
    limits: Limits
    traits: frozenset[str]
    requests: int
    pause: float
    """Seconds between two requests, on average."""


def draw(seed: int, random: Random) -> Scenario:
    """The scenario of a seed. Every thirtieth is a siege, and the one after it full of stalls."""
    if seed % 30 == 0:
        return _siege(random)
    if seed % 30 == 1:
        return _stalls(random)
    traits = frozenset(trait for trait in TRAITS if random.random() < 0.4)
    models = tuple(_model(key, traits, random) for key in "abcd"[: random.randint(1, 4)])
    limits = Limits(
        BUDGET,
        queue_per_model=random.choice((1, 3, 8)),
        queue_total=random.choice((4, 10)),
        max_crashes=random.choice((2, 3, 20)),
        crash_window=random.choice((1.0, 60.0)),  # The shorter one is over within many a load.
        cooldown=6.0,
        patience=PATIENCE,
    )
    return Scenario(models, limits, traits, random.randint(4, 16), random.choice((0.1, 0.5, 1.5)))


def _model(key: str, traits: frozenset[str], random: Random) -> Model:
    policy = draw_policy(random.choice((1, 1, 2, 3, 8)), traits, random)
    return Model(key, random.choice((15, 20, 30, 40, 55, 80, 100, 101)), policy)


def draw_policy(concurrency: int, traits: frozenset[str], random: Random) -> Policy:
    """A policy that a model may have. Those of other concurrency are another model's."""
    return Policy(
        concurrency,
        keep_alive=random.choice((0.0, 2.0, 30.0, 300.0)),
        pinned="pins" in traits and random.random() < 0.3,
        replicas=random.choice((1, 1, 2, 3)),
    )


def _siege(random: Random) -> Scenario:
    """Two models are asked for all the time, and now and then one that fits beside neither."""
    small = Policy(concurrency=2, keep_alive=300.0)
    models = (
        Model("a", 45, small),
        Model("b", 45, small),
        Model("c", random.choice((60, 80)), Policy(keep_alive=random.choice((0.0, 300.0)))),
    )
    limits = Limits(BUDGET, queue_per_model=8, queue_total=16, patience=PATIENCE)
    return Scenario(models, limits, frozenset(), 90, 0.5)


def _stalls(random: Random) -> Scenario:
    """One model, whose runners stall and recover with others in their place."""
    policy = Policy(random.choice((1, 2)), keep_alive=300.0)
    limits = Limits(BUDGET, patience=PATIENCE)
    return Scenario((Model("a", 20, policy),), limits, frozenset({"stalls"}), 30, 1.0)


def bound_on_wait(scenario: Scenario, ahead: int) -> float:
    """How long one may wait at most for whom so many others waited when he came.

    First come, first served: each of them may need a load of its own, for which those who hold the
    memory end what they do; so does he, once his patience is over. And what was being loaded or
    served at the beginning has to end.
    """
    if scenario.traits & UNFAIR:
        return math.inf
    return PATIENCE + (ahead + 2) * (SERVICE + STOP + LOAD)
