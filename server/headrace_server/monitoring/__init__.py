"""What can be seen of a controller from outside: its levels, and an endpoint for Prometheus.

The endpoint is imported only where it is wanted: it brings OpenTelemetry's SDK and Prometheus's
client.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from headrace_server.listening import CannotListenError

if TYPE_CHECKING:
    from headrace_server.monitoring.endpoint import Endpoint, Loaded

logger = logging.getLogger(__name__)


def serve_metrics(address: str, loaded: Loaded, *, shared: bool) -> Endpoint:
    """Serve metrics for Prometheus on `host:port`, those of every runner that `loaded` gives too.

    `shared`: whether another process may listen there as well. Raises CannotListenError.
    """
    from headrace_server.monitoring.endpoint import Endpoint

    endpoint = Endpoint(loaded, shared=shared)
    try:
        url = endpoint.listen(address)
    except OSError as error:
        raise CannotListenError(
            f"cannot serve metrics on {address}; give another address with --metrics-listen: "
            f"{error}"
        ) from error
    logger.info("serving metrics", extra={"url": url})
    return endpoint
