"""Which peers there are, which of them answer, and which of them have a key."""
