"""The report of a run, the page that compares runs, and the sections that every run has.

Sections and claims of papers come from their folders, by the places that the settings of the stage
name. May import `training/`, `sampling/`, `scoring/`, `pages/` and below. Start with `report.py`.
"""
