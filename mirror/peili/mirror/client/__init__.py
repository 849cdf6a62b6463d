"""HTTP/1.1 to peers: the client with its pool, one connection, how it is made and what carries it, and host names."""
