"""Content on this host: files that are served, the inventory of what a store has, and what this host receives.

- `files` reads whole files, and `growing` files that still grow. `inventory` implements `Store.watch`.
- `selected_store` and `intact_store` show a part of what a store has. `wrapped_store` is their base.
- `incoming` is what this host receives now. `ring` has its last bytes, and `incoming_content` lets other hosts read it.
- `received` remembers what this host received lately.
"""
