"""The terms of the OCI specifications and of HTTP: references, media types, ranges, requests, errors. No I/O."""
