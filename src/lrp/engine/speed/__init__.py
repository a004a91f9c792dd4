"""Optimisations of the explanation program: the same relevance with less arithmetic or memory."""
