"""Relays content from peers to this host's runtime.

- `transfer` puts one response together, from one or several holders. It is what the local door uses.
- `relay` has what all transfers share, and limits how many there are.
- `holders` opens one source after the other: it asks the router (`leases`), lets the holders race (`race`), and lets a
  faster one replace one that hesitates (`replacement`).
- `source` is one holder's part of the content. `parallel` lets requests take turns, if the runtime fetches in parallel.
- `pipeline` moves bytes from sources to the runtime, in bounded memory. `verify` checks them.
- `ingest` shows what the runtime already has. `reputation` remembers how peers behaved.
"""
