"""The metrics of a mirror, and their conversion for Prometheus."""
