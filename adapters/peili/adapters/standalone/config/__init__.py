"""The configuration of the command: peili.toml and PEILI_ variables."""
