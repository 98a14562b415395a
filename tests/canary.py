"""Pickles that are noticed when anybody opens them."""


class Canary:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")
