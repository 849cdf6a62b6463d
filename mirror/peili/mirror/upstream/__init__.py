"""Small questions to registries: may this be read, and what does a tag mean there? Content never goes this way.

- `client` is what the rest of the mirror uses. `answers` has the questions, and the answers that there are.
- `registries` has what is known about each registry, `api_roots` finds where its API is, and `root_client` asks there.
  `challenges` are what a registry demands first, and `pauses` whom it wants to wait.
- `transport` makes one exchange over HTTP, with a connection of `pools`. `exchanges` has its values. `destinations`
  says which addresses are refused, and `unlogged` keeps secrets out of logs.
"""
