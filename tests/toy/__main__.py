"""`python -m tests.toy ...`: the engine's command line over the toy catalog."""

import sys

from pipeline.__main__ import main


def root():
    from tests.toy.table import CATALOG

    return CATALOG


if __name__ == "__main__":
    sys.exit(main(root=root))
