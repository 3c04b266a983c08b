"""By which policy a model is served that has several names."""

import math
from dataclasses import replace

from headrace_server.config import ServerConfig
from headrace_server.scheduling.planner import policies
from headrace_server.scheduling.state import Policy

PLAIN = ServerConfig().options("a:latest")


def test_names_that_share_runners_get_what_any_of_them_asks_for() -> None:
    pinned = replace(PLAIN, pinned=True, keep_alive=10.0)
    many = replace(PLAIN, replicas=3)
    lasting = replace(PLAIN, keep_alive=math.inf)
    strongest = Policy(PLAIN.max_concurrency, math.inf, pinned=True, replicas=3)
    for names in ((pinned, many, lasting), (lasting, many, pinned)):
        found = policies([*(("shared", options) for options in names), ("other", PLAIN)])
        assert found["shared"] == strongest
        assert found["other"] == Policy(PLAIN.max_concurrency, PLAIN.keep_alive)
