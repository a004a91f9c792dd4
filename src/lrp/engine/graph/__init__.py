"""A model as a graph of ATen operations: capture, rewriting to a canonical form, and what each operation means to LRP."""
