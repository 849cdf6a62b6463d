"""Edits containerd's hosts.toml files, and reports what they say."""
