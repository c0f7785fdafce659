"""Other methods of editing behind one small interface, for side-by-side tables.

Each is written from its paper's equations and figures, in a file that names its sources.
"""
