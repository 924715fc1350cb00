"""Many weighted adapters into one, one method a file."""
