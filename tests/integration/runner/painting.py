"""A runner that knows one family of image models: the tests' own."""

import sys

from headrace_runner.__main__ import main
from headrace_runner.models import families

if __name__ == "__main__":
    families.FAMILIES = ("tests.painter:FAMILY",)
    sys.exit(main())
