"""The interfaces that plug-ins implement, the values that they use, and how plug-ins are found by name."""
