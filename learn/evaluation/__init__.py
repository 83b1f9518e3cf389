"""Play full games with a policy: returns, scores, videos, attention weights."""
