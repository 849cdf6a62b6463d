"""Relays content from peers to this host's runtime.

`relay` is what the local door uses; a `transfer` is one answer put together from one or several holders; a `source` is
one holder's part of it; `verifier` hashes what goes by; `blame` remembers who would not do.
"""
