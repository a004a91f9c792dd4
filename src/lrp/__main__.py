"""`python -m lrp` is the command `lrp`."""

import sys

from lrp.cli import main

if __name__ == "__main__":
    sys.exit(main())
