"""Models as users hold them, exported and left as they were."""
