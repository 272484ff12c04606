"""From results to a page and a table that people read."""
