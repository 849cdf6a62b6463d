"""What this host's runtime received and from where: the store, peers or upstream. Its savings, and a line per image."""
