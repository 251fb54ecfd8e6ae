"""How anything is shown: HTML, figures, curves with errors, and verdicts on claims.

What is said of a paper lies in its folder, what is said of every run in `report/`. May import
`settings/`, `artifacts/` and below. Start with `made.py` (what a section is given) and `page.py`.
"""
