"""What we measure, and against what. `python -m bench`, or `make bench`."""
