"""One call's way through the controller: wait for a runner, hand the request on, pass answers back.

A call outlives its runner: when that dies, hangs or is being stopped, another goes on where it was.
`record` decides, and is pure, as are `completions` and `images`; `calls` speaks to one runner;
`relay` ties them together.
"""

from headrace_server.relay.completions import CompletionRecord, carried_tokens
from headrace_server.relay.images import ImageRecord
from headrace_server.relay.record import duration
from headrace_server.relay.relay import Relay, Terms

__all__ = ["CompletionRecord", "ImageRecord", "Relay", "Terms", "carried_tokens", "duration"]
