"""`python -m headrace_server`: the controller."""

import sys

from headrace_server.app import main

if __name__ == "__main__":
    sys.exit(main())
