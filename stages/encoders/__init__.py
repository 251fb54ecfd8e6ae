"""Networks that see images, for scores and for alignment, and where their weights lie.

Built and loaded here; the stages that train or check them are in `scoring/` and `training/`, bare
architectures in `nets/`. May import `nets/` and `methods/`. Start with `embedded.py`.
"""
