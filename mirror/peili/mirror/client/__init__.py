"""HTTP/1.1 to peers: the client with its pool, one connection, the transport below it, and the lookup of host names."""
