"""What `ray submit` runs on the cluster's head: the command line, joined to that cluster."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main([*sys.argv[1:], "--address", "auto"]))
