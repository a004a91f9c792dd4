"""The rewrites of a captured graph: the same function in fewer, simpler operations, in one form however it was written."""
