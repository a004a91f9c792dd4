"""`python -m lrp` is the command `lrp`."""

from lrp.cli import run

if __name__ == "__main__":
    run()
