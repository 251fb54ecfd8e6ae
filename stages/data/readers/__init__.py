"""Readers of data sets, one file a format: `read(settings)` gives the images and labels of a place.

`methods/table.py` names them. May import `methods/` and each other. Start with `source.py`;
`tree.py` and `layout.py` say what folders mean, `arrays.py` what arrays mean.
"""
