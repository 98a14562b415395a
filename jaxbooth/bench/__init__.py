"""How fast a training step is on this machine, beside PyTorch diffusers' if that is wanted."""

OUT_OF_MEMORY = "out of memory"  # the problem of a case that finds no room
