"""Makes Envoy's configuration for Kubernetes out of deploy/envoy/envoy.yaml, so that there is one.

There the controllers are in a file; here they are the addresses of a headless Service. `--check`
changes nothing, and fails when what is checked in is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "deploy" / "envoy" / "envoy.yaml"
TARGET = ROOT / "deploy" / "kubernetes" / "overlays" / "envoy" / "envoy.yaml"
_HEAD = (
    "# Made by `make kubernetes` from deploy/envoy/envoy.yaml: change that. docs/kubernetes.md.\n"
)

_CHANGES = (
    # Paths are relative to where Envoy starts, which nothing may be written to here; and its end is
    # announced by a POST, for which a shell can open a port but no socket.
    (
        "    pipe: { path: admin.sock, mode: 0600 }\n",
        "    socket_address: { address: 127.0.0.1, port_value: 9901 }\n",
    ),
    # Others than this pod are who it is for; its controllers ask for tokens.
    (
        "{ address: 127.0.0.1, port_value: 8443 }\n",
        "{ address: 0.0.0.0, port_value: 8443 }\n",
    ),
    # Each volume is a directory of its own.
    ("proto_descriptor: headrace.binpb\n", "proto_descriptor: contract/headrace.binpb\n"),
    ("path: access.log\n", "path: /dev/stdout\n"),
    (
        """      type: EDS
      eds_cluster_config:
        eds_config:
          resource_api_version: V3
          path_config_source: { path: ./endpoints.yaml }
""",
        """      type: STRICT_DNS
      dns_refresh_rate: 2s
      dns_lookup_family: V4_PREFERRED
      load_assignment:
        cluster_name: controllers
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: { address: headrace-pods, port_value: 50151 }
""",
    ),
    ("          sni: localhost\n", "          sni: headrace\n"),
    (
        "- { san_type: DNS, matcher: { exact: localhost } }\n",
        "- { san_type: DNS, matcher: { exact: headrace } }\n",
    ),
    (
        """    # Where spans go: the OpenTelemetry Collector that the controllers also send to.
    - name: telemetry
      type: STATIC
""",
        """    # Where spans go: the OpenTelemetry Collector that the controllers also send to.
    - name: telemetry
      type: STRICT_DNS
""",
    ),
    (
        "socket_address: { address: 127.0.0.1, port_value: 4317 }\n",
        "socket_address: { address: otel-collector, port_value: 4317 }\n",
    ),
)


def generate(source: str) -> str:
    """Envoy's configuration for Kubernetes.

    Raises:
        ValueError: a line that has to be another here is not in `source`, or is there twice.
    """
    for here, there in _CHANGES:
        if source.count(here) != 1:
            raise ValueError(
                f"{SOURCE.name} has this {source.count(here)} times, not once:\n{here}"
            )
        source = source.replace(here, there)
    start = source.index("node:\n")  # What stands above it is about starting it by hand.
    return _HEAD + "\n" + source[start:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when stale")
    check: bool = parser.parse_args().check
    wanted = generate(SOURCE.read_text(encoding="utf-8"))
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == wanted:
        return 0
    if check:
        print(f"{TARGET.relative_to(ROOT)} is stale: run `make kubernetes`", file=sys.stderr)
        return 1
    TARGET.write_text(wanted, encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
