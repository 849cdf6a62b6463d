"""The directory: for each key, one or two members (its homes) know who has it, so that a lookup asks only these."""
