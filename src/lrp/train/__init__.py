"""Train a model on new classes: only its head, on computed features, or all of its layers."""
