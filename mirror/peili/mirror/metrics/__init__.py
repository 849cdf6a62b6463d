"""What a mirror counts, and how Prometheus reads it."""
