"""The protocol between hosts: the id and the URLs of a host, the headers that hosts send, and how keys are looked up.

Both sides of each exchange are here, without I/O. The HTTP client is in client/. The routes are in membership/,
resolvers/ and doors/.
"""
