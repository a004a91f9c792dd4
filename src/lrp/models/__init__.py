"""Names and files -> models with their weights, their own preprocessing and their class names."""
