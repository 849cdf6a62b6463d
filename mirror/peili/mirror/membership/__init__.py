"""Which peers there are, which of them answer, and which of them have a key.

- `router` has the base class of routers that know the members. `peer_health` knows which members are alive.
- `lookup` asks members who has a key, and `key_answers` answers when another host asks this one.
- `advice` decides where this host gets a key: it asks the homes of the key, and looks for whole holders.
- `directory` has what the homes of a key know and decide, so that a host asks two members instead of all.
"""
