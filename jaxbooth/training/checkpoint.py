"""Checkpoints that are either whole or not there: `RUN/checkpoints/<step>/state` and its seal `DONE.json`.

A save is written to a draft, sealed with the digests of all its files, and only then renamed to its step. So a kill at
any instant leaves the last finished checkpoint as it was, and two writers cannot mix their files: the first rename
wins. `checkpoint_folder.py` has the names, `digests.py` the seal, `leaves.py` the comparison with the run.
"""

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.path import atomicity

from jaxbooth.errors import CheckpointError, list_problems
from jaxbooth.training import digests
from jaxbooth.training.checkpoint_folder import CheckpointFolder
from jaxbooth.training.leaves import (
    LeafTable,
    PyTree,
    differences,
    leaf_table,
    named_leaves,
    require_arrays,
    require_shardings,
)
from jaxbooth.training.processes import from_process_zero

logger = logging.getLogger(__name__)

MIN_SLICE_BYTES = 2**24  # smaller arrays are written whole, by one of their holders
WRITE_TIMEOUT_S = 1200  # for one checkpoint, all processes together
ADVICE = "Undo the change, or train in another run folder."


class CheckpointStore:
    """Saves and restores the state of one run; as a context manager it leaves only when the last save is finished.

    On several processes every method is called by all of them, and the folder is on a file system that they share.

    Args:
        folder: `RUN/checkpoints`; made if it is not there, readable by its owner only.
        keep: number of newest checkpoints that stay, `None` for all. One goes only after a newer one is finished, and
            the best one stays beside them.
        fingerprint: what the run is (method, base model, data, …) as JSON-able values. A checkpoint of another
            fingerprint is not restored; with `read_only`, what is given is compared.
        read_only: for sampling and export: never changes the folder; damaged checkpoints are passed over.

    Raises:
        CheckpointError: the folder is missing (`read_only`) or cannot be written.
    """

    def __init__(self, folder: Path, *, keep: int | None = 3, fingerprint: dict[str, str], read_only: bool = False):
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._folder = CheckpointFolder(folder, read_only=read_only)
        self._keep, self._read_only = keep, read_only
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-commit")
        self._pending: Future | None = None
        from_process_zero(self._folder.open)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(
                use_ocdbt=True,
                use_zarr3=False,
                # Orbax lets every device that holds a copy write a slice of it, and compiles a program for each slice.
                type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)),
                ),
            ),
            # If Orbax made folders in the background, one that it cannot make would hang the interpreter at exit.
            async_options=ocp.options.AsyncOptions(
                timeout_secs=WRITE_TIMEOUT_S, create_directories_asynchronously=False
            ),
            # By default the commit depends on the kind of path; this is the same everywhere.
            temporary_path_class=atomicity.AtomicRenameTemporaryPath,
        )
        self._barrier = ocp.multihost.get_barrier_sync_fn()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        try:
            self.close()
        except CheckpointError:
            # What ended the run is the cause to report; the lost checkpoint has been logged.
            if exc_type is None:
                raise

    def steps(self) -> list[int]:
        """Returns the steps of finished checkpoints, ascending; their digests are not verified."""
        return self._folder.finished()

    def restore_newest(self, target: PyTree) -> tuple[int, PyTree] | None:
        """Restores the newest undamaged checkpoint, after verifying every file against its seal.

        A damaged or unfinished one is named in a warning, set aside, and the one before it is tried.

        Args:
            target: the state's structure; leaves are `jax.ShapeDtypeStruct`s with a sharding, or `jax.Array`s. Its
                mesh may differ from that of the save.

        Returns:
            The step and the state, or `None` if this run has never finished a checkpoint.

        Raises:
            CheckpointError: every checkpoint is damaged; or the newest belongs to another run, or its leaves differ
                from the target's in name, shape or dtype (all of them are listed; nothing is cast).
        """
        table = self._prepare_restore(target)
        step = from_process_zero(lambda: self._newest_undamaged(table))
        return None if step is None else (step, self._read(step, target))

    def restore(self, step: int, target: PyTree) -> PyTree:
        """Restores one checkpoint, as strictly as `restore_newest` does.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it does not fit this run.
        """
        table = self._prepare_restore(target)
        from_process_zero(lambda: self._require_undamaged(step, table))
        return self._read(step, target)

    def best_step(self) -> int | None:
        """Returns the step that was noted as the best one, or `None` if none was.

        Raises:
            CheckpointError: the note cannot be read.
        """
        return from_process_zero(self._folder.best_step)

    def note_best(self, facts: dict[str, Any] | None) -> None:
        """Notes which finished checkpoint is the best one and why (`{"step": ..., ...}`), or that none is.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._finish_commit()
        from_process_zero(lambda: self._note(facts))

    def save(self, step: int, state: PyTree, best: dict[str, Any] | None = None) -> None:
        """Starts a save; on return the state may be changed or donated, and writing goes on in the background.

        Waits for the save before it. Does nothing if the step has a finished checkpoint.

        Args:
            step: optimiser steps taken.
            state: leaves are `jax.Array`s, over all processes.
            best: what is noted once it is finished, if it is the best one so far.

        Raises:
            CheckpointError: this save, or the one before it, could not be written.
        """
        named = named_leaves(state)
        require_arrays(named)
        if jax.process_index() > 0:
            self._finish_commit()
        name = from_process_zero(lambda: self._next_draft(step))
        if name is None:
            if best is not None:
                self.note_best(best)
            return
        draft = self._folder.path / name
        try:
            # Orbax refuses arrays without elements; the seal's leaf table has them.
            stored = {name: leaf for name, leaf in named.items() if leaf.size}
            self._orbax.save(draft / "state", args=ocp.args.PyTreeSave(stored))
        except Exception as error:
            self._discard(draft)
            raise self._unwritable(step, error) from error
        self._pending = self._committer.submit(self._commit, step, draft, leaf_table(named), best)

    def close(self) -> None:
        """Waits until the last save is finished.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self._finish_commit()
        finally:
            self._committer.shutdown()
            self._orbax.close()

    def _next_draft(self, step: int) -> str | None:
        self._finish_commit()
        if self._folder.read_only:
            raise CheckpointError(f"{self._folder.path}: these checkpoints were opened for reading only")
        try:
            return self._folder.make_draft(step)
        except OSError as error:
            raise self._unwritable(step, error) from error

    def _note(self, facts: dict[str, Any] | None) -> None:
        try:
            self._folder.note_best(facts)
        except OSError as error:
            raise CheckpointError(f"{self._folder.path}: the best checkpoint could not be noted: {error}") from error

    def _commit(self, step: int, draft: Path, table: LeafTable, best: dict[str, Any] | None) -> None:
        """Runs in the background: waits for the data of all processes, then seals it on process 0."""
        packages = {name: version(name) for name in ("jax", "orbax-checkpoint")}
        facts = {"step": step, "fingerprint": self._fingerprint, "leaves": table, "versions": packages}
        try:
            self._orbax.wait_until_finished()
            try:
                if jax.process_index() == 0:
                    self._folder.finish(draft, step, facts)
                    if best is not None:
                        self._folder.note_best(best)
                    if self._keep is not None:
                        self._folder.prune(step, self._keep)
            finally:
                self._barrier(key=f"jaxbooth-checkpoint-{draft.name}", timeout_ms=WRITE_TIMEOUT_S * 1000)
        except Exception as error:
            self._discard(draft)
            failure = self._unwritable(step, error)
            logger.error("%s", failure)
            raise failure from error

    def _finish_commit(self) -> None:
        if self._pending is None:
            return
        # Not Thread.join: interrupted by Ctrl-C, it takes the thread for ended, and the next wait would not wait.
        self._pending.exception()
        finished, self._pending = self._pending, None
        finished.result()

    def _discard(self, draft: Path) -> None:
        if jax.process_index() == 0:
            self._folder.discard(draft)

    def _unwritable(self, step: int, error: Exception) -> CheckpointError:
        cause = str(error).split(" [tensorstore_spec=")[0]  # half a page that names neither file nor reason
        return CheckpointError(
            f"{self._folder.of(step)}: the checkpoint could not be written: {cause}\n{self._folder.condition()} "
            "Make room or choose another run folder, then run the same command again."
        )

    def _prepare_restore(self, target: PyTree) -> LeafTable:
        self._finish_commit()
        named = named_leaves(target)
        require_shardings(named)
        return leaf_table(named)

    def _newest_undamaged(self, table: LeafTable) -> int | None:
        steps = self._folder.numbered()
        for step in reversed(steps):
            problems = self._inspect(step, table)
            if not problems:
                return step
            self._folder.set_aside(step, problems)
        if steps or self._folder.damaged():
            raise CheckpointError(
                f"{self._folder.path}: every checkpoint of this run is damaged (steps {steps}, set aside "
                f"{self._folder.damaged()}). Bring one back from a backup, or remove this folder to start from step 0."
            )
        return None

    def _require_undamaged(self, step: int, table: LeafTable) -> None:
        if step not in self._folder.numbered():
            raise CheckpointError(f"{self._folder.of(step)}: there is no such checkpoint. Steps: {self.steps()}.")
        if problems := self._inspect(step, table):
            heading = f"{self._folder.of(step)}: the checkpoint is damaged."
            raise CheckpointError(list_problems(heading, problems, "Use another step or a backup."))

    def _inspect(self, step: int, table: LeafTable) -> list[str]:
        """Lists the damage of a checkpoint; one that is sealed but does not fit this run is an error."""
        folder = self._folder.of(step)
        try:
            seal = digests.read_seal(folder)
            self._require_fit(folder, seal, table)
            return digests.damage(folder, seal)
        except digests.BrokenSeal as broken:
            return [str(broken)]
        except OSError as error:
            raise CheckpointError(f"{folder}: the checkpoint cannot be read: {error}") from error

    def _require_fit(self, folder: Path, seal: dict, table: LeafTable) -> None:
        if seal["format"] != digests.FORMAT:
            raise CheckpointError(
                f"{folder}: the checkpoint has format {seal['format']}, this version of jaxbooth reads format "
                f"{digests.FORMAT}. Resume with the version that wrote it."
            )
        theirs, ours = seal["fingerprint"], self._fingerprint
        changed = [
            f"{key}: {theirs.get(key)!r} in the checkpoint, {ours.get(key)!r} in this run"
            for key in (ours if self._read_only else {**theirs, **ours})  # a reader need not have all that trained
            if theirs.get(key) != ours.get(key)
        ]
        if changed:
            raise CheckpointError(list_problems(f"{folder}: the checkpoint is of another run.", changed, ADVICE))
        if lines := differences(seal["leaves"], table):
            heading = f"{folder}: {len(lines)} arrays of the checkpoint do not fit this run."
            raise CheckpointError(list_problems(heading, lines, ADVICE))

    def _read(self, step: int, target: PyTree) -> PyTree:
        named = named_leaves(target)
        like = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in named.items()
            if leaf.size
        }
        layout = {
            name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
            for name, leaf in like.items()
        }
        path = self._folder.of(step) / "state"
        try:
            arrays = self._orbax.restore(path, args=ocp.args.PyTreeRestore(item=like, restore_args=layout))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: its files are undamaged, but cannot be restored: {error}") from error
        leaves = [
            arrays[name] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
            for name, leaf in named.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)
