"""The stand-alone command `peili`: configuration, logging, signals and systemd around `peili.mirror`.

A host that embeds peili needs nothing of this.
"""
