"""Answers questions of operators: who has an image, does it arrive, and how far are the peers. It changes nothing."""
