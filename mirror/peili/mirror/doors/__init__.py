"""The doors: the ASGI apps that answer the requests to a mirror.

A *door* is one entrance with its own kind of client. The local door answers this host's runtime, from the store and
from peers. The peer door answers other hosts, from the store only. The ops app answers operators: health, readiness,
metrics and status.

A request passes the `layers` around a door (metrics, access check), then `base.Door`, which both doors share: it checks
and parses the request and turns errors into responses. `local` or `peer` finds the content. `response` writes the
response; `open_content` reads what the store has, and `stored_content` sends it.
"""
