"""Errors that a user can mend: each says what is wrong, where, and what to do next."""


class JaxboothError(Exception):
    """Base of every error that is the input's fault; the command line prints it without a traceback, exit code 2."""


class ConfigError(JaxboothError):
    """A configuration value is unknown, missing or does not fit."""


class DataError(JaxboothError):
    """Pictures, captions or data sets cannot be used."""


class ConversionError(JaxboothError):
    """A folder of weights is not the Stable Diffusion that it says it is."""


class CheckpointError(JaxboothError):
    """A checkpoint cannot be read, written or does not belong to this run."""


class MeshError(JaxboothError):
    """The device mesh does not fit the devices or the batch."""


class MethodError(JaxboothError):
    """A method cannot be applied to this model."""


PREEMPTED = 75  # exit code: stopped on request after a checkpoint; run the same command again (sysexits.h: EX_TEMPFAIL)


class Preempted(Exception):
    """The run was asked to stop and has saved; running the same command again goes on."""


def list_problems(heading: str, problems: list[str], advice: str = "") -> str:
    """Formats several problems as one message: a heading, one line each, then what to do."""
    lines = [heading, *(f"  - {problem}" for problem in problems)]
    return "\n".join(lines + ([advice] if advice else []))
