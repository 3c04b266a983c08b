"""`python -m headrace_server`: the controller."""

import os
import sys

# Read once, when gRPC is imported. Its own notes in the log tell a user nothing that ours do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
if sys.platform == "linux":
    # gRPC's event engine hands what it reads from thread to thread. Its other way of polling reads
    # in the thread that waits, which takes a relay a sixth less computing for each message (see
    # docs/performance.md). Runners inherit this. On other systems it has not been measured.
    without = ("client", "listener", "for_all_other_endpoints")
    os.environ.setdefault("GRPC_EXPERIMENTS", ",".join(f"-event_engine_{part}" for part in without))

from headrace_server.main import main

if __name__ == "__main__":
    sys.exit(main())
