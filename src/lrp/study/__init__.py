"""Model x data -> tables of predictions; tables -> numbers, plots, contact sheets, comparisons. No torch but in `evaluate`."""
