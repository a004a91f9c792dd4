"""LRP itself: rules, the explanation program that they write, its account, and the explainer that runs it.

Start with `rules`, then `affine`, `program`, `presets`."""
