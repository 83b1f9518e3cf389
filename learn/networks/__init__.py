"""The networks above a fusion, and the pixel baseline."""
