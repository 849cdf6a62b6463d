"""Relays content from peers to this host's runtime.

- `relay` opens transfers, and limits their number. The local door uses it. `state` has what transfers share.
- `transfer` assembles one response from one or several holders.
- `holders` opens a source, and the next one if that fails. It asks the router (`leases`), sends requests to holders
  (`holder_requests`), races them against each other (`race`), and replaces a slow holder by a faster one
  (`replacement`). `rejections` says which holders a transfer cannot use.
- `source` reads from one holder, whose response `responses` checks. `parallel` queues requests if the runtime fetches
  parts of a blob in parallel. If the holder still receives the content, `feeder` finds out why it sends nothing.
  `joining` reads what another transfer of this host receives instead, through a `joined_body`.
- `opening` opens the first source, and settles size and range. `reception` moves the bytes of sources through a
  pipeline, and lets other hosts read them. `senders` remembers who sent what is not verified yet. `wrong_bytes` says
  what a transfer does if its bytes are wrong, and `tracing` finds out where a wrong byte entered.
- `pipeline` moves bytes from sources to the runtime, in the bounded memory of `buffers`. `verify` checks their
  digest, in the threads of `hash_threads`. `known_sizes` has the sizes that verified manifests state,
  and `following` what manifests name that have just come from other hosts.
- `ingest` reads what the runtime already has of the content. `leftovers` checks what the runtime keeps of bytes that
  the relay could not verify.
- `blame` remembers for each blob which peers failed, and `scores` how fast and how reliable peers are over all blobs.
"""
