"""The networks of EDM (Karras et al. 2022): SongUNet, DhariwalUNet and their preconditionings.

Modules carry the names of the published state dicts, which load into them as they are.
"""
