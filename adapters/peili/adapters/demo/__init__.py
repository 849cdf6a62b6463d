"""`peili demo`: peili at work on one machine, without root.

Three hosts on loopback run a mirror each. Only one of them has an image, and a third-party client pulls it through the
others. Then three new hosts pull at once what only a slow registry has. A program that embeds peili needs nothing from
this package; hosts.py shows how to embed it.
"""
