"""CSFlow (arXiv 2606.08833): timestep weights from human contrast sensitivity.

Its mathematics is `methods/csflow.py`; here is what it is compared with. Start with `recipe.py`.
"""
