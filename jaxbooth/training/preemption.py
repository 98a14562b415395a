"""Being asked to stop: SIGTERM or Ctrl-C ends training after the current step, with a checkpoint."""

import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Preemption:
    """Notices a request to stop; a context manager around the training loop.

    One process: the first SIGTERM or Ctrl-C is remembered, further SIGTERMs change nothing, a second Ctrl-C raises
    `KeyboardInterrupt`. The handlers from before come back on exit.

    Several processes: `jax.distributed.initialize` has installed a SIGTERM handler of its own, which makes all
    processes stop at the same step. A Python handler would silently replace it, so none is installed.
    """

    def __init__(self):
        self._requested = False
        self._interrupted = False
        self._stopping = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() > 1:
            if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):
                logger.warning(
                    "A Python handler for SIGTERM is installed. If that was done after jax.distributed.initialize, a "
                    "preemption will not be noticed."
                )
        elif threading.current_thread() is not threading.main_thread():
            logger.warning("Not in the main thread: SIGTERM and Ctrl-C will not save a checkpoint.")
        else:
            self._install(signal.SIGTERM, self._on_terminate)
            self._install(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def reached(self, step: int) -> bool:
        """Tells whether to save and stop after this step; call it at every step, on every process.

        Args:
            step: optimiser steps taken; the same numbers on every process.
        """
        if not self._stopping:
            if jax.process_count() > 1:
                self._stopping = multihost_utils.reached_preemption_sync_point(step)
            else:
                self._stopping = self._requested
            if self._stopping:
                logger.warning("Asked to stop: saving a checkpoint at step %d.", step)
        return self._stopping

    def _install(self, number: int, handler) -> None:
        previous = signal.getsignal(number)
        # Ignored means that whoever started us (nohup, a shell's &) wants it ignored; None, a handler not of Python.
        if previous is not signal.SIG_IGN:
            signal.signal(number, handler)
            self._previous[number] = signal.SIG_DFL if previous is None else previous

    # Handlers only set flags: they run between any two bytecodes, also within a save or a log record.
    def _on_terminate(self, number, frame) -> None:
        self._requested = True

    def _on_interrupt(self, number, frame) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._requested = self._interrupted = True
