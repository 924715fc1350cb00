"""How messages reach clients."""
