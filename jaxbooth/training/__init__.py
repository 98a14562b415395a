"""The state, the step, the loop and their checkpoints."""
