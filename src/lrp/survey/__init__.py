"""Measure for every known architecture whether it is explained correctly, and how fast (`lrp models --check`)."""
