"""Settings that several stages share, and what they choose: networks, losses, densities, solvers.

A stage's own settings stand beside the stage. Light at import. May import `artifacts/` and below.
Start with `losses/` (a file a loss) or `solvers.py`.
"""
