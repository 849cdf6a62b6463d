"""The doors: where requests come in. `local` for this host's runtime, `peer` for other hosts, `ops` for operators.

`door` holds what local and peer door share; `target` and `conditions` parse; `stored`, `multipart`, `response` answer.
"""
