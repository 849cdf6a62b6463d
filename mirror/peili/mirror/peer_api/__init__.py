"""What hosts say to each other: who a peer is, which headers it sends, how it is asked for a key."""
