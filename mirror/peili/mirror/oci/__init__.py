"""The terms of the OCI specifications and of HTTP: references, ranges, paths, errors. Nothing here does I/O."""
