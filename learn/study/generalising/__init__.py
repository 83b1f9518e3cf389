"""`wsa study generalise`: trained runs in games that look or play differently."""
