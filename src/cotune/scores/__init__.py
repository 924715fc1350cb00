"""One number for each example: one score a file; any policy turns it into a choice."""
