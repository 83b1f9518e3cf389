"""Keep a shared store encoded: the service, its heartbeats, claims, counters and Prometheus."""
