"""Every known architecture measured: is it explained correctly, and how fast (`lrp models --check`)."""
