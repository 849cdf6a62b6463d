"""What plug-ins implement: the interfaces, the values that they use, and how plug-ins are found and called."""
