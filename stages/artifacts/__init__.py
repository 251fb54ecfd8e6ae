"""What lies between stages: a class for every kind of artifact that a node leaves on disk.

How it is read, not how it is made: that is its stage. Light at import; payloads are read in
`load()`. May import `encoders/`, `nets/` and `methods/`. Start with `described.py`.
"""
