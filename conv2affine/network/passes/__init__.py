"""From graph to graph: each pass does one thing."""
