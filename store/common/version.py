"""The version of wsa; here, so that no module has to import the package's root, which names them all."""

__version__ = "0.1.0"
