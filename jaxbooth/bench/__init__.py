"""How fast a training step is on this machine, beside PyTorch diffusers' if that is wanted."""
