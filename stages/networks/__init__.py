"""Networks from elsewhere: `load(path)` reads the field's own checkpoint files, running no code of
theirs. A format is a file of this folder and a line of `reading.py`, where to start."""


def __getattr__(name: str) -> object:  # reading imports torch, and a plan names formats without it
    if name not in ("Network", "load"):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from stages.networks.reading import Network, load

    return {"Network": Network, "load": load}[name]
