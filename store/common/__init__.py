"""Code that every package uses: errors, hashes, names, atomic files, and the terminal."""
