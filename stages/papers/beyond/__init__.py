"""What goes beyond the papers, with claims of our own: the solver of a whole trajectory, what a
correction can gain, and how near CSFlow's grids are to a model's best one. Start with `recipe.py`.
"""
