"""Keep a shared store encoded: the service, its heartbeat, claims, counters and Prometheus."""
