"""A trained run: its model with the method's modules in it, plain, or as files."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxbooth.config import Config
from jaxbooth.errors import ConfigError, MethodError
from jaxbooth.nn.surgery import set_strength
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, reopen
from jaxbooth.run_folder import RunFolder
from jaxbooth.text_metric import text_metric
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.state import Split, TrainState, init_state, state_shardings, subject_adapter
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.load import load_pipeline
from jaxbooth.weights.save import save_pipeline


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

    def write(self, run: RunFolder) -> None:
        """RUN/pipeline; what is there stays."""
        if not run.pipeline.exists():
            save_pipeline(self.plain(), run.pipeline)


def load_base(config: Config, folder: Path, mesh: Mesh) -> StableDiffusion:
    """The base with compute dtype as configured and float32 weights: what trains stays exact."""
    return load_pipeline(folder, config.base.dtype, mesh, param_dtype="float32", remat=config.base.remat)


def start(prepared: Prepared, sd: StableDiffusion) -> tuple[Split, TrainState]:
    """The state before the first step; consumes the arrays of `sd` that train."""
    config = prepared.config
    ema = config.train.ema_decay is not None
    if config.method.type == "perfusion":
        sd.concepts = nnx.data(text_metric(sd, prepared.base, config.method.covariance_captions))
    return init_state(
        config.method, sd, len(prepared.names), optimizer(config), config.train.seed, prepared.mesh, ema,
        prepared.texts(),
    )  # fmt: skip


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


def load_run(run: RunFolder) -> TrainedRun:
    """A run's newest checkpoint, on one device, whatever it was trained on: sampling happens on other machines.

    Raises:
        ConfigError: the run has not saved anything yet.
    """
    prepared = reopen(run.config().model_copy(update={"run_dir": str(run.path)}))
    sd = load_base(prepared.config, prepared.base, prepared.mesh)
    split, state = start(prepared, sd)
    digest = base_digest(prepared.base)
    marks = fingerprint(prepared, digest)
    with CheckpointStore(run.checkpoints, keep=None, fingerprint=marks, read_only=True) as store:
        restored = store.restore_newest(abstract(state, prepared.mesh))
    if restored is None:
        raise ConfigError(f"{run.path} has no checkpoint yet: run `jaxbooth train` to its first save")
    return TrainedRun(prepared, sd, split, restored[1], digest)


def load_any(path: str, strength: float = 1.0) -> StableDiffusion:
    """A model to draw with: a run, a pipeline folder, a hub id or `pocket`.

    Raises:
        MethodError: a strength is given for something that has no adapter.
    """
    run = RunFolder(Path(path))
    if not run.config_file.is_file():
        if strength != 1.0:
            raise MethodError(f"{path} is a pipeline, not a run: it has no strength to set")
        return load_pipeline(path)
    folded = (run.pipeline / "model_index.json").is_file() and run.config().method.merge_is_exact
    if folded and strength == 1.0:
        return load_pipeline(run.pipeline)
    return load_run(run).to_sample(strength)
