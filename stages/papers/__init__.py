"""The papers on the bench, one folder each: options, own stages, recipe, report and claims.

A folder's `paper.py` declares all of it (`stages/paper.py` says how), and `catalog.py` names the
folder. Mathematics lies in `methods/`, what several papers share in the folders below. May import
all but `catalog.py`; papers do not import each other, but for `combined/`, which puts them
together. Start with any `paper.py`.
"""
