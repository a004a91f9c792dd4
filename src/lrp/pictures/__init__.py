"""Files -> pixels, relevance -> pictures, photos -> sheets. numpy and Pillow, no torch."""
