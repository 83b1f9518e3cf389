"""What `import wsa` offers: stores, runs and encoders as objects, and commands as functions.

The names that users rely on are those of `wsa.__all__`; `docs/reference/python.md` has them all.
"""
