"""Which peers there are, which of them answer, and which of them have a key.

- `router` has the base class of routers that know the members. `peer_health` knows which members are alive.
- `lookup` asks the directory who has a key, or members, and `key_answers` answers when another host asks this one.
- `own_keys` finds out whether this host has a key, for answers to others.
- `advice` decides where this host gets a key: it asks the homes of the key, and looks for whole holders.
- `directory` has what the homes of a key know and decide, so that a host asks two members instead of all.
"""
