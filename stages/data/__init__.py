"""The data set: its stage `prepare`, its spectrum, and the readers of file formats.

A reader is a file of `readers/` and a line in `methods/table.py`. What is drawn or encoded from
data lies elsewhere. May import `settings/`, `artifacts/` and below. Start with `prepare.py`.
"""
