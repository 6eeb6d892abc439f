"""Exported networks: what their folders say, and the runtimes that run their files."""
