"""Pure tensor functions, one a file."""
