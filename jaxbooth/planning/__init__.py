"""What a training step needs of a machine, asked of the compiler before the machine is rented."""
