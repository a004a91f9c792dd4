"""Folders and data sets -> samples with their classes, and splits of them; Imagenette and Imagewoof."""
