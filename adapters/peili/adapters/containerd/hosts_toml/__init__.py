"""Writes containerd's hosts.toml files, and takes them back."""
