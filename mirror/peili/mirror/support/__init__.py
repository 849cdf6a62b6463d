"""Helpers that know nothing of images: tasks, deadlines, backoff, options, threads, log lines, the watchdog."""
