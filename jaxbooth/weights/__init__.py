"""Between our parameters and diffusers folders."""
