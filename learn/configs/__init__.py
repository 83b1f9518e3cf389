"""Options of the commands and algorithms, as dataclasses that define the command line."""
