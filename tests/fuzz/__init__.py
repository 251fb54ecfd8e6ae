"""Hostile input: whatever a store, a file or a command line holds, no traceback and no escape."""
