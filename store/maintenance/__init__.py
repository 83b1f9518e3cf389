"""Check, repair, clean up and summarise a store."""
