"""Which nodes there are: the recipes full and evaluate, and what all recipes share.

A paper's own recipe is in its folder. May import the report and all stages of the common bench, no
paper: `full.py` asks the papers what they add. Start with `full.py`, `nodes.py` makes the nodes.
"""
