"""Which private examples to train on, one method a file."""
