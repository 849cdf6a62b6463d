"""Relays content from peers to this host's runtime.

`relay` is what the local door uses; a `transfer` is one answer put together from one or several holders, whom its
`supply` finds; a `source` is one holder's part of it; `passage` is how bytes go on to the runtime, in the bounds of
`memory`; `verifier` hashes them, in the threads of `hashing`; `blame` remembers who would not do.
"""
