"""LRP itself: rules, the explanation program that is built from them, its account, and the explainer that runs it.

Start with `rules`, then `affine`, `program`, `presets`."""
