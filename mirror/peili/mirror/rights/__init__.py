"""Who may pull what: the registry decides, and this host remembers its answers for a while."""
