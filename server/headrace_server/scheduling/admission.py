"""When a request could have its first token at the earliest, by what was measured. Pure."""

from collections.abc import Sequence

from headrace_server.scheduling import routing
from headrace_server.scheduling.state import Asked, Phase, Slot


def earliest(
    asked: Asked, slots: Sequence[Slot], *, ahead: int, retry_at: float, now: float
) -> float:
    """Seconds from now, and never more than it would really take if the world were kind.

    `slots` are the model's runners, `ahead` counts those who wait for it in front, and before
    `retry_at` none is started. Kind: every request that is served ends at once, memory is free at
    once, and there are as many runners as there may be. What is left of the wait is what those
    ahead take for themselves, the load, and what no runner has of the prompt.
    """
    pace = asked.pace
    here = [slot for slot in slots if slot.phase in (Phase.SERVING, Phase.STALLED)]
    prefill = routing.unknown_share(here, asked.prefixes) * pace.prefill
    if any(slot.has_place for slot in slots) and not ahead:
        return prefill
    loading = [slot.started_at for slot in slots if slot.phase is Phase.LOADING]
    if here:
        start = 0.0
    elif loading:
        start = max(0.0, pace.load - (now - min(loading)))
    else:
        start = max(0.0, retry_at - now) + pace.load
    widest = max(asked.policy.concurrency, *(slot.policy.concurrency for slot in slots), 1)
    places = widest * max(asked.policy.replicas, len(slots))
    return start + ahead // places * pace.service + prefill
