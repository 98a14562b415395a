"""What a run is going to do, told before anything is computed: whole for `--dry-run`, in short at every start."""

import math
from dataclasses import replace

from jaxbooth.config import dump
from jaxbooth.data.picture_views import cache_folder
from jaxbooth.data.prompts import check_token
from jaxbooth.pipeline import tokenize, tokenizers
from jaxbooth.prepare import Prepared, parameter_table
from jaxbooth.sharding import adapter_sharding

SHOWN = 12  # captions and views listed in full; data sets have thousands


def describe(prepared: Prepared) -> str:
    """Captions with token ids, views, mesh, parameters, bytes per device, and the files to be written."""
    parts = [
        ("Configuration", dump(prepared.config).splitlines()),
        ("Captions", _captions(prepared)),
        ("Views", _views(prepared)),
        ("Mesh", _mesh(prepared)),
        ("Parameters", _parameters(prepared)),
        ("Files", _files(prepared)),
    ]
    return "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) + "\n" for title, lines in parts)


def announce(prepared: Prepared) -> list[str]:
    """What was decided, in a few lines: pictures, mesh, batch, parameters, notes on photos and identifier."""
    return [*_views(prepared), *_mesh(prepared), _parameters(prepared)[0], *_notes(prepared)]


def _notes(prepared: Prepared) -> list[str]:
    tokenizer = tokenizers(prepared.family.folder, 1)[0]
    notes = list(prepared.dataset.notes) if prepared.dataset is not None else []
    for subject in prepared.subjects:
        notes += subject.notes
        if not prepared.config.method.vectors_per_token:  # else the token is a word of its own
            notes += check_token(tokenizer, subject.token, subject.class_noun)
    return [f"note: {note}" for note in notes]


def _captions(prepared: Prepared) -> list[str]:
    first = [images[index] for images in prepared.instance_images() for index in range(min(SHOWN, len(images)))]
    captions = list(dict.fromkeys(caption for image in first for caption in image.captions))
    if prepared.uses_prior:
        captions += [prepared.prior_prompt(subject) for subject in prepared.subjects]
    shown = captions[:SHOWN]
    ids = tokenize(replace(prepared.family, new_tokens=prepared.new_tokens()), shown)
    end = tokenizers(prepared.family.folder, 1)[0].eos_token_id
    lines = []
    for caption, row in zip(shown, ids[:, 0].tolist(), strict=True):
        length = row.index(end) + 1 if end in row else len(row)
        cut = "" if length < len(row) else "  (fills the encoder: what comes after is cut off)"
        lines.append(f'"{caption}"  {" ".join(map(str, row[:length]))}{cut}')
    total = sum(len(images) for images in prepared.instance_images())
    return lines + ([f"(of the first of {total} pictures)"] if total > len(first) else []) + _notes(prepared)


def _views(prepared: Prepared) -> list[str]:
    data = prepared.config.data
    per_image = data.views_per_image
    lines = [
        f"{name}: {len(images)} pictures x {per_image} = {len(images) * per_image} views of "
        f"{prepared.resolution}x{prepared.resolution}"
        for name, images in zip(prepared.names, prepared.instance_images(), strict=True)
    ]
    if (probe := prepared.config.train.probe) is not None and probe.held_out:
        lines.append(f"held out for the probe: {probe.held_out} pictures of each, the last by name")
    if prepared.uses_prior:
        lines.append(
            f"prior: {prepared.config.prior.num_images} pictures for each class, "
            f"weight {prepared.config.prior.loss_weight}"
        )
    return lines


def _mesh(prepared: Prepared) -> list[str]:
    train, shape = prepared.config.train, dict(prepared.mesh.shape)
    devices = prepared.mesh.devices.flat
    return [
        f"{' x '.join(f'{axis} {size}' for axis, size in shape.items())} on {len(prepared.mesh.devices.flat)} "
        f"{devices[0].device_kind} devices, {len({d.process_index for d in devices})} processes",
        f"{prepared.rows} rows a subject and step ({train.batch_size} instance"
        + (f" + {train.batch_size} prior" if prepared.uses_prior else "")
        + f"), in {train.gradient_accumulation_steps} parts, {train.steps} steps",
    ]


def _parameters(prepared: Prepared) -> list[str]:
    shapes, frozen_inside, outside = parameter_table(prepared)
    subjects = len(prepared.names)
    trained = sum(math.prod(shape) for shape in shapes.values())
    local = 0
    for shape in shapes.values():
        full = (subjects, *shape)
        local += math.prod(adapter_sharding(full, prepared.mesh).shard_shape(full))
    copies = 4 + (prepared.config.train.ema_decay is not None)  # weights, two moments, gradients, and the average
    bytes_frozen = frozen_inside * (2 if prepared.config.base.dtype == "bfloat16" else 4)
    largest = sorted(shapes.items(), key=lambda item: -math.prod(item[1]))[:5]
    return [
        f"trainable {trained:,} a subject, frozen {frozen_inside:,} in the step, {outside:,} outside it "
        "(VAE and cached text)",
        *(f"  {name} {list(shape)}" for name, shape in largest),
        f"bytes per device: {(4 * copies * local + bytes_frozen) / 2**20:,.1f} MiB of state "
        f"({copies} x {4 * local / 2**20:,.1f} MiB trained in float32, {bytes_frozen / 2**20:,.1f} MiB frozen), "
        "activations come on top",
    ]


def _files(prepared: Prepared) -> list[str]:
    run = prepared.run
    files = [run.config_file, run.record_file, run.path / "metrics.jsonl", run.checkpoints / "<step>/"]
    files += [run.path / "probe.jsonl"] if prepared.config.train.probe is not None else []
    if prepared.prompts or prepared.class_prompts:
        files += [run.samples / "before/", run.samples / "after/"]
        files += [run.samples / "step-<step>/"] if prepared.config.sample.every_steps is not None else []
    if prepared.prompts or prepared.class_prompts or prepared.subjects:
        files.append(run.path / "contact_sheet.png")
    if prepared.config.export:
        files.append(run.adapter if prepared.config.method.has_adapter else run.pipeline)
    kept = "VAE moments and prior pictures" if prepared.uses_prior else "VAE moments"
    return [*map(str, files), f"{cache_folder()} ({kept} that are not there yet; shared by all runs)"]
