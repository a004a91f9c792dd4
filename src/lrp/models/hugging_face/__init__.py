"""Models of transformers: repositories of the Hugging Face hub and folders, their image processors, images with texts."""
