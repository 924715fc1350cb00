"""Scores to rows: one policy a file; each works with every score."""
