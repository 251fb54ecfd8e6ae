"""The engine: settings, graph of nodes, store of artifacts, Ray and MLflow.

It knows stages and recipes as something declares them, and nothing of diffusion: what is measured
lies in `stages`. Imports neither `stages` nor `sweeps`, but for `__main__.py`, which puts all
together. Start with `stage.py` (how work is declared), `graph.py`, then `run.py`.
"""
