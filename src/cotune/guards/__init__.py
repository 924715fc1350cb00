"""What protects an update on its way, client half and server half in one file."""
