"""The commands that manage a store: push, pull, merge, verify, sweep, list, show, du."""
