"""Who loads, who waits, who goes: the pure core of scheduling.

`decide` takes what is known, what has happened and the time, and gives what is
known now and what is to be done. It never acts, waits, or looks at a clock.

Nothing is remembered about what was meant to happen next. After every event
`settle` derives it anew from the state: who can be served is, who has outstayed
the keep-alive goes, who is wanted and fits is loaded. So a load that nobody
waits for any more is not started, and a victim is never revived.
"""

from headrace_server.scheduling.desk import Desk
from headrace_server.scheduling.events import Action, Event
from headrace_server.scheduling.hearing import hear
from headrace_server.scheduling.settling import settle
from headrace_server.scheduling.state import State


def decide(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """The state after an event, and what is to be done, in this order.

    Events about requests and runners that are not known (any more) change
    nothing, so the shell need not know who won a race.
    """
    desk = Desk(state, now)
    hear(desk, event)
    settle(desk)
    return desk.state(), tuple(desk.actions)
