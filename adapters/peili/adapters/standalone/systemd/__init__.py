"""systemd's protocols: sockets that it passes, and what it is told."""
