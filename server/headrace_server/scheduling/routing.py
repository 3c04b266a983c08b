"""Which of a model's runners a request goes to. Pure.

The rule: a runner that is clearly more loaded than the least loaded is left out. Of the others the
one goes first that has served the longest part of the prompt's beginning, and so has it in its
prefix cache; among equals the least loaded, and then the oldest.

It is the trade that SGLang's cache-aware router makes: affinity while the load is balanced, and the
least loaded when the imbalance is large both in number and in proportion. Here affinity needs no
least length, since what it can cost is bounded by the imbalance that is allowed.
"""

from collections.abc import Iterable, Sequence

from headrace_server.scheduling.state import BORDERS, Prefixes, Slot

REMEMBERED = 64
"""Prompts that are remembered of each runner."""

_SLACK_SHARE = 8
_SLACK_LEAST = 2
_SLACK_RATIO = 1.5


def choose(slots: Sequence[Slot], prefixes: Prefixes) -> Slot:
    """The runner for a request, of those that have a place for it. There must be one."""
    if len(slots) == 1:
        return slots[0]
    least = min(len(slot.leases) for slot in slots)

    def rank(slot: Slot) -> tuple[bool, int, int]:
        load = len(slot.leases)
        loaded = _clearly_more(load, least, slot.policy.concurrency)
        return loaded, 0 if loaded else -matched(slot.served, prefixes), load

    return min(slots, key=rank)


def matched(served: Sequence[Prefixes], prefixes: Prefixes) -> int:
    """How many of a prompt's growing prefixes some prompt before it had in common with it."""
    return max((_common(before, prefixes) for before in served), default=0)


def unknown_share(slots: Iterable[Slot], prefixes: Prefixes) -> float:
    """How much of a prompt, at least, is new to each of these runners, as far as is remembered."""
    if not prefixes:
        return 1.0
    known = max((matched(slot.served, prefixes) for slot in slots), default=0)
    # What is known may end just before the next border, and the prompt just behind its last.
    return 0.0 if known == len(prefixes) else 1.0 - BORDERS[known] / BORDERS[len(prefixes) - 1]


def remember(served: tuple[Prefixes, ...], prefixes: Prefixes) -> tuple[Prefixes, ...]:
    """The record after one more prompt: the latest, but none that is a later one's beginning."""
    if not prefixes:
        return served
    others = (before for before in served if prefixes[: len(before)] != before)
    return (*others, prefixes)[-REMEMBERED:]


def _clearly_more(load: int, least: int, concurrency: int) -> bool:
    slack = max(_SLACK_LEAST, concurrency // _SLACK_SHARE)
    return load - least > slack and load > _SLACK_RATIO * least


def _common(one: Prefixes, other: Prefixes) -> int:
    length = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        length += 1
    return length
