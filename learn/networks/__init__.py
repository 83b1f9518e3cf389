"""Policy and value networks on top of a fusion, and the pixel baseline."""
