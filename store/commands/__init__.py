"""The commands that manage a store: init, push, pull, merge, verify, sweep, du."""
