"""Which private examples to train on: one selector a file."""
