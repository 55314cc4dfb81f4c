"""What each operator computes, in neutral arguments."""
