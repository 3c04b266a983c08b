"""`python -m headrace_server`: the controller."""

import os
import sys

# Read once, when gRPC is imported. Its own notes in the log tell a user nothing that ours do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# uvloop forks where asyncio would vfork. If gRPC prepared the child for calls of its own, one in
# forty would die of that before it has become a runner.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

from headrace_server.main import main

if __name__ == "__main__":
    sys.exit(main())
