"""Content on this host: files that are served, the inventory of what a store has, and what this host receives."""
