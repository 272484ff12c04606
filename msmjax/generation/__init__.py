"""Prompts are continued: in batches on the mesh, and for callers of which each waits for its own answer."""
