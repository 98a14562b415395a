"""A trained run: its model with the method's modules in it, plain, or as files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxbooth.config import Config
from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.errors import ConfigError, MethodError
from jaxbooth.export.formats import check_format, check_new_folder, export, own_formats
from jaxbooth.export.perfusion import load_perfusion
from jaxbooth.export.source import Base, SubjectNames, Trained, licence_of
from jaxbooth.merging.gating import gate_together
from jaxbooth.nn.surgery import set_strength
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, reopen
from jaxbooth.run_folder import RunFolder
from jaxbooth.text_metric import text_metric
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.checkpoint_folder import BEST
from jaxbooth.training.state import Split, TrainState, init_state, state_shardings, subject_adapter
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.hub import commit_of, resolve
from jaxbooth.weights.load import load_pipeline

MERGE_RECORD = "merge.json"  # in a folder that `jaxbooth merge` wrote


@dataclass(frozen=True)
class TrainedRun:
    """What training left: the base, the split of the attached model, and the state."""

    prepared: Prepared
    sd: StableDiffusion
    split: Split
    state: TrainState
    base_digest: str

    def attached(self, strength: float = 1.0, index: int = 0) -> StableDiffusion:
        """One subject's model, complete, with the method's modules in it and its new words in its vocabulary.

        Raises:
            MethodError: a strength other than 1 for a method that changed the base itself.
        """
        method, sd = self.prepared.config.method, self.sd
        if strength != 1.0 and not method.has_adapter:
            raise MethodError(f"method {method.type} changed the base itself: it has no strength to set, leave it at 1")
        tree = self.split.merge(subject_adapter(self.state, index))
        family = replace(sd.family, new_tokens=self.prepared.new_tokens(index))
        model = StableDiffusion(tree.unet, sd.vae, list(tree.text_encoders) or list(sd.text_encoders), family)
        model.concepts = nnx.data(tree.concepts)
        method.for_sampling(model)
        if strength != 1.0:
            set_strength(model, strength)
        return model

    def plain(self, strength: float = 1.0, index: int = 0) -> StableDiffusion:
        """The same with the adapter folded into the weights: what every client of Stable Diffusion runs."""
        model = self.attached(strength, index)
        self.prepared.config.method.merge(model)
        return model

    def to_sample(self, strength: float = 1.0, index: int = 0) -> StableDiffusion:
        """The model to draw with: plain where that is exact, which is faster, else attached."""
        exact = self.prepared.config.method.merge_is_exact
        return self.plain(strength, index) if exact else self.attached(strength, index)

    def steps_taken(self, index: int = 0) -> int:
        """Steps that one subject has moved in: its own number of them, or fewer if it stopped early."""
        taken = min(int(self.state.step), self.prepared.terms[index].steps)
        # Who has taken all of its own steps stands still, and may be found to have settled later on.
        return min(abs(int(self.state.ended[index])) or taken, taken)

    def source(self, strength: float = 1.0, index: int = 0) -> Trained:
        """One subject's model and the facts about it, as exporters read them."""
        prepared, model = self.prepared, self.attached(strength, index)
        facts = base_facts(prepared.config.base.path, prepared.base, self.base_digest)
        config = with_own_rates(prepared.config, prepared.terms[index].learning_rate)
        return described(config, model, facts, prepared.groups[index], self.steps_taken(index), strength)

    def write(self, run: RunFolder) -> None:
        """RUN/pipeline, or where the base stays as it is RUN/adapter/<format>; what is there stays."""
        method = self.prepared.config.method
        if method.has_adapter:
            wanted = {name: run.adapter / name for name in own_formats(method) or ("merged",)}
        else:
            wanted = {"diffusers": run.pipeline}
        # All are looked for before the first is written: several processes must agree.
        missing = {name: folder for name, folder in wanted.items() if not folder.exists()}
        source = self.source()
        for name, folder in missing.items():
            export(source, name, folder)


def described(
    config: Config, model: StableDiffusion, base: Base, subjects: Sequence[SubjectConfig], steps: int,
    strength: float = 1.0,
) -> Trained:  # fmt: skip
    """A model with the facts that its run's configuration tells."""
    names = tuple(SubjectNames(subject.name, subject.token, subject.class_noun) for subject in subjects)
    rates = {
        "learning rate": config.optimizer.learning_rate,
        "of text encoders": config.optimizer.text_encoder_learning_rate,
        "of new words": config.optimizer.embedding_learning_rate,
    }
    optimizer = ", ".join(
        [config.optimizer.type, *(f"{what} {rate:g}" for what, rate in rates.items() if rate is not None),
         f"batch size {config.train.batch_size}"]
    )  # fmt: skip
    return Trained(config.method, model, base, names, steps, optimizer, strength)


def with_own_rates(config: Config, factor: float) -> Config:
    """The configuration of a subject of a pack, whose learning rates are the others' times a factor."""
    if factor == 1.0:
        return config
    rates = ("learning_rate", "text_encoder_learning_rate", "embedding_learning_rate")
    own = {name: factor * rate for name in rates if (rate := getattr(config.optimizer, name)) is not None}
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update=own)})


def base_facts(path: str, folder: Path, digest: str) -> Base:
    """What is to be told of a base."""
    licence = "apache-2.0" if path == "pocket" else licence_of(folder)
    return Base(path, digest, commit_of(folder), licence)


def load_base(config: Config, folder: Path, mesh: Mesh, *, exact: bool = False) -> StableDiffusion:
    """The base with compute dtype as configured and float32 weights: what trains stays exact.

    Args:
        exact: Keep frozen weights in float32 too, to fold an adapter into them; training only multiplies with them.
    """
    rounded = config.method.multiplies_base_only and not exact
    options = {"remat": config.base.remat, "rounded": rounded}
    return load_pipeline(folder, config.base.dtype, mesh, param_dtype="float32", **options)


def start(prepared: Prepared, sd: StableDiffusion) -> tuple[Split, TrainState]:
    """The state before the first step; consumes the arrays of `sd` that train."""
    config = prepared.config
    ema = config.train.ema_decay is not None
    if config.method.type == "perfusion":
        metric = text_metric(sd, prepared.base, config.method.covariance_captions)
        sd = StableDiffusion(sd.unet, sd.vae, list(sd.text_encoders), sd.family)  # not in the caller's
        sd.concepts = nnx.data(metric)
    return init_state(config.method, sd, prepared.terms, optimizer(config), prepared.mesh, ema, prepared.texts())


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimiser of a run, with the parts of it in which the method lets a group of parameters move."""
    return config.optimizer.build(config.train.steps, config.method.learning_windows(config.train.steps))


def abstract(state: TrainState, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and layout of a state: what a checkpoint is compared with."""
    layout = state_shardings(state, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)


def fingerprint(prepared: Prepared, digest: str) -> dict[str, str]:
    """What a checkpoint belongs to; without the pictures where a run was reopened without them."""
    config = prepared.config
    method, optimizer = config.method.model_dump_json(), config.optimizer.model_dump_json(include={"type"})
    marks = {"base": digest, "method": method, "optimizer": optimizer}
    if prepared.subjects:
        marks["images"] = ", ".join(subject.digest for subject in prepared.subjects)
    return marks


def load_run(run: RunFolder, best: bool = False) -> TrainedRun:
    """A run's newest checkpoint, on one device, whatever it was trained on: sampling happens on other machines.

    Args:
        run: The run.
        best: Take the checkpoint with the lowest probe instead.

    Raises:
        ConfigError: the run has not saved anything yet, or has no best checkpoint.
        CheckpointError: the best one is damaged or gone.
    """
    prepared = reopen(run.config().model_copy(update={"run_dir": str(run.path)}))
    sd = load_base(prepared.config, prepared.base, prepared.mesh, exact=True)
    split, state = start(prepared, sd)
    digest = base_digest(prepared.base)
    marks = fingerprint(prepared, digest)
    with CheckpointStore(run.checkpoints, keep=None, fingerprint=marks, read_only=True) as store:
        target = abstract(state, prepared.mesh)
        if best:
            state = store.restore(_best_step(run, store), target)
        elif (restored := store.restore_newest(target)) is not None:
            state = restored[1]
        else:
            raise ConfigError(f"{run.path} has no checkpoint yet: run `jaxbooth train` to its first save")
    return TrainedRun(prepared, sd, split, state, digest)


def check_best(path: str) -> None:
    """Raises ConfigError, before anything is loaded, unless a folder is a run that knows its best checkpoint."""
    run = RunFolder(Path(path))
    if not run.config_file.is_file():
        raise ConfigError(f"{path} is no run: it has no best checkpoint, leave --best out")
    if not (run.checkpoints / BEST).is_file():
        raise ConfigError(
            f"{path} has no best checkpoint: it is kept by runs with train.probe={{}} (keep_best: true) from their "
            "first probe on. Leave --best out to take the newest."
        )


def _best_step(run: RunFolder, store: CheckpointStore) -> int:
    check_best(str(run.path))
    return store.best_step()


def export_run(
    path: str, out: Path, name: str, strength: float = 1.0, dtype: str | None = None, best: bool = False
) -> Path:
    """Writes a run, or a pipeline (a folder, a hub id or `pocket`), as `export.formats.export` does.

    Raises:
        MethodError: the method has no such format, or no strength.
        ConversionError: OUT is not empty, or cannot be written.
    """
    run = RunFolder(Path(path))
    config = run.config() if run.config_file.is_file() else None
    check_format(name, None if config is None else config.method, dtype)
    check_new_folder(out)
    return export(load_source(path, strength, best), name, out, dtype)


def load_source(path: str, strength: float = 1.0, best: bool = False) -> Trained:
    """What is to be exported: a run, what `merge` wrote, a pipeline folder, a hub id or `pocket`.

    Raises:
        ConfigError: the best checkpoint is wanted of something that has none.
        MethodError: a strength is given for something that has no adapter, or it is a merge by gating.
    """
    run = RunFolder(Path(path))
    if best:
        check_best(path)
        return load_run(run, best=True).source(strength)
    if not run.config_file.is_file():
        is_merge = (run.path / MERGE_RECORD).is_file()
        if is_merge and not _has_pipeline(run):
            raise MethodError(
                f"{path} holds gated concepts, which are no plain weights: export the runs it was made of"
            )
        folder = run.pipeline if is_merge else resolve(path)
        return Trained(None, load_any(path, strength), base_facts(path, folder, base_digest(folder)))
    config = run.config()
    if config.method.has_adapter or not _has_pipeline(run):
        return load_run(run).source(strength)
    # The trained weights lie there already, and the checkpoint may have been removed.
    record = run.record()
    facts = Base(config.base.path, record.get("base", ""), record.get("commit"), licence_of(run.pipeline))
    return described(config, load_any(path, strength), facts, config.subjects, config.train.steps)


def _has_pipeline(run: RunFolder) -> bool:
    return (run.pipeline / "model_index.json").is_file()


def load_merged(folder: Path) -> StableDiffusion:
    """What `jaxbooth merge` wrote: a pipeline, or a base with several Perfusion concepts."""
    record = json.loads((folder / MERGE_RECORD).read_text())
    if record["how"] != "gating":
        return load_pipeline(folder / "pipeline")
    base = resolve(record["base"])
    sd = load_pipeline(base)
    concepts = [load_perfusion(folder / name) for name in record["concepts"]]
    return gate_together(sd, text_metric(sd, base, record["captions"]), concepts, base_digest(base))


def load_any(path: str, strength: float = 1.0, best: bool = False) -> StableDiffusion:
    """A model to draw with: a run, what `merge` wrote, a pipeline folder, a hub id or `pocket`.

    Args:
        path: Which.
        strength: Of an adapter.
        best: Take a run's checkpoint with the lowest probe, not what it ended with.

    Raises:
        ConfigError: the best checkpoint is wanted of something that has none.
        MethodError: a strength is given for something that has no adapter.
    """
    run = RunFolder(Path(path))
    if best:
        check_best(path)
        return load_run(run, best=True).to_sample(strength)
    if not run.config_file.is_file():
        if strength != 1.0:
            raise MethodError(f"{path} is a pipeline, not a run: it has no strength to set")
        return load_merged(Path(path)) if (Path(path) / MERGE_RECORD).is_file() else load_pipeline(path)
    folded = _has_pipeline(run) and run.config().method.merge_is_exact
    if folded and strength == 1.0:
        return load_pipeline(run.pipeline)
    return load_run(run).to_sample(strength)
