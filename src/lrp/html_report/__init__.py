"""Tables of predictions -> one HTML file to look through and to mail, with photos and their heatmaps."""
