"""Which public examples teach which model, one method a file."""
