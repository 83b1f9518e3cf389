"""Check, repair, clean up and summarize a store."""
