"""The wire between hosts: who a peer is, the headers that peers send, and how one host asks another for a key.

Both sides of each exchange stand here, without I/O. The HTTP client is in client/, the routes are in membership/.
"""
