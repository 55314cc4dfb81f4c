"""Models as users have them, exported and left as they were."""
