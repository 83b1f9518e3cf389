"""Code that every room uses: errors, hashes, names, atomic files and the terminal."""
