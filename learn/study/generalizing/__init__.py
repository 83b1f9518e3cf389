"""`wsa study generalize`: trained runs in games that look or play differently."""
