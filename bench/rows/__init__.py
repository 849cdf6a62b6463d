"""One module for each group of rows: a generator that yields a row as soon as it is measured."""
