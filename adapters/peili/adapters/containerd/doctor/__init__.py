"""Finds out why containerd does not use the mirror, and says how to fix it."""
