"""What each command and each algorithm can be told: dataclasses that are the command line."""
