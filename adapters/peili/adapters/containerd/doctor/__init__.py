"""Finds out whether containerd uses peili, and says what to change where it does not."""
