"""Networks from elsewhere: `load(path)` reads the field's own checkpoint files, running no code of
theirs. A format is a file of this folder and a line of `load.py`, where to start."""

from stages.networks.load import Network, load

__all__ = ["Network", "load"]
