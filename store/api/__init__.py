"""What functions of the Python API are made of: keyword arguments, and packages that are callable."""
