"""A model's predictions on a data set as a table; from tables: numbers, plots, contact sheets, comparisons.

Only predicting and drawing heatmaps need torch; the numbers do not.
"""
