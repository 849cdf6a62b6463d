"""The interfaces that plug-ins implement, the values that these use, and how plug-ins are found and called."""
