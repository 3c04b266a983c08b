"""`python -m headrace_server`: the controller."""

import os
import sys

# Read once, when gRPC is imported. Its own notes in the log tell a user nothing that ours do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from headrace_server.main import main

if __name__ == "__main__":
    sys.exit(main())
