"""Observers that change nothing, one a file."""
