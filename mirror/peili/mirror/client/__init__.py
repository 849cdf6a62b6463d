"""HTTP to peers: the client, its connections, and the sockets below them."""
