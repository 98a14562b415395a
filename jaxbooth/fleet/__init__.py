"""Many subjects from one manifest: read, packed, trained by supervised workers, each committed exactly once."""
