"""Helpers without knowledge of images: tasks, deadlines, threads, log lines, the watchdog."""
