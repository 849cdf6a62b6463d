"""Content on this host: files that are served, and the inventory of what a store has."""
