"""Files that adapters change: written whole or not at all, and what they have in common."""
