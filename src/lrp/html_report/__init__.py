"""Tables of predictions -> a self-contained HTML file with photos and their heatmaps."""
