"""Helpers that know nothing of images: tasks, deadlines, options, threads, log lines, the watchdog."""
