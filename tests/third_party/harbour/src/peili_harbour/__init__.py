"""Plug-ins for peili: the members from a text file, the content from an image archive."""
