"""How hosts prove to each other that they are peers: mutual TLS, from certificate files or from a shared key."""
