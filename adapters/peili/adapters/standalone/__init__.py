"""The stand-alone command `peili`: configuration, logging, signals and systemd around `peili.mirror`.

A program that embeds peili needs nothing from this package.
"""
