"""Explains the photos of a folder and writes a picture for each; one result for every file."""
