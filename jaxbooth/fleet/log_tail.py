"""The end of a log, fit to be kept and shown: few lines, none too long, no secrets."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

SECRET_NAME = re.compile("TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
SHORTEST_SECRET = 6  # TOKENIZERS_PARALLELISM=false is no secret, and "false" is a word
WINDOW = 256 * 1024
LINE = 500


def read_tail(log: Path, start: int, environment: Mapping[str, str], lines: int = 40) -> str:
    """Returns the last lines of a log.

    Args:
        log: A text file.
        start: Where the part of it begins that counts, in bytes.
        environment: Where the values of TOKEN, KEY, SECRET and PASSWORD variables are taken out, besides our own.
        lines: How many.
    """
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - WINDOW))
        text = file.read().decode(errors="replace")
    if size - WINDOW > start:
        text = re.split("[\r\n]", text, maxsplit=1)[-1]  # the first line may begin in the middle of a secret
    text = redact(redact(text, environment), os.environ)
    # A progress bar draws one line again and again: its last state is what a terminal would show.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")]
    return "\n".join(line if len(line) <= LINE else line[:LINE] + " ..." for line in shown[-lines:])


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Replaces the values of variables that are secret by their names: `[HF_TOKEN]`."""
    secrets = {
        part.strip(): name
        for name, value in environment.items()
        if SECRET_NAME.search(name)
        for part in value.splitlines()
        if len(part.strip()) >= SHORTEST_SECRET
    }
    for secret in sorted(secrets, key=len, reverse=True):  # one may contain another
        text = text.replace(secret, f"[{secrets[secret]}]")
    return text
