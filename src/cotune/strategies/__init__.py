"""Co-tuning methods, one a file."""
