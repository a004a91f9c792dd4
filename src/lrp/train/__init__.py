"""A model with new classes: its head fitted on features, or all of its layers trained."""
