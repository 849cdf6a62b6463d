"""The directory: for each key, one or two members (its homes) know who has it, so that a lookup asks only these.

`directory` is one host's part in it. docs/cold-start.md explains the decisions, and docs/protocol.md the messages.

Each host asks the homes, and reports to them:

- `homes` computes which members are the homes of a key, from the ids that `members` knows. `member_search` says when to
  look for members again because an unknown host has spoken.
- `publisher` reports the keys of this host. `claiming` asks where this host gets a key. `leases` has what was granted,
  and reports what becomes of it. `home_client` sends all these messages.
- `upstream_rates` knows what the runtime of this host fetches from upstream. `takeover` tells homes of it.

Each home answers other hosts:

- `routes` receives the messages, and `home` answers them: from `records` (who has what) and `claims` (who fetches).
- `claims` takes requests and reports about the keys in `fetch_table`. `fetches` is one key that is being fetched, and
  `fetcher` one host that fetches it. `reporters` says how often hosts should report.
- `decisions` chooses the answer to a host, and `reviews` changes it while content arrives. For both, `feeders` chooses
  the host to read from, `fan_out` the number of its children, and `roots` who goes upstream. `forming` has
  the order of hosts that ask at the same moment.
- `link_rates` and `slow_hosts` know how fast hosts are.
"""
