"""Relays content from peers to this host's runtime.

`relay` is what the local door uses; a `transfer` is one answer put together from one or several holders, whom its
`supply` finds; a `source` is one holder's part of it; `passage` is how bytes go on to the runtime, in the bounds of
`memory`; `verifier` hashes them, in the threads of `hashing`; `blame` remembers who would not do for which content.

Who of several holders is asked, and who takes whose place, is for `rivals`: they are asked in a `race` for which
`entrants` has the holders, and tried in a `contest` beside one that hesitates; `health` remembers how each did.
"""
