"""What capturing needs besides torch.export: a copy of the model, its hooks, answers about constants, other threads kept out."""
