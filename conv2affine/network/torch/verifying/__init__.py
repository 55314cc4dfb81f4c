"""The check at the end of every conversion."""
