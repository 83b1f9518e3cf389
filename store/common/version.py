"""The version of wsa, in its own module so that no module must import the package's root for it."""

__version__ = "0.1.0"
