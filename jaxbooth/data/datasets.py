"""Captioned pictures through Hugging Face `datasets`: local folders, parquet files and data sets of the Hub.

Rows stay on disk, memory-mapped, and pictures stay encoded until they are asked for; decoding is the image gate's, not
the library's. No code of a data set is ever run.
"""

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from jaxbooth.data.captions import CaptionedImage, read_sidecars, shorten, tidy
from jaxbooth.data.folders import is_local, missing_folder
from jaxbooth.data.images import is_image_name, list_images
from jaxbooth.errors import DataError, list_problems

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class DatasetConfig(BaseModel, frozen=True, extra="forbid"):
    """Captioned pictures to fine-tune on."""

    path: str = Field(
        min_length=1,
        description="Folder (pictures with metadata.jsonl or caption files; parquet), or a data set's id on the Hub.",
    )
    split: str = Field("train", min_length=1, description="Which split of the data set to use.")
    image_column: str = Field("image", min_length=1, description="Column that holds the pictures.")
    caption_column: str = Field("text", min_length=1, description="Column that holds the captions.")
    revision: str | None = Field(None, description="Commit, tag or branch of a data set on the Hub; null = newest.")
    limit: int | None = Field(None, ge=1, description="Use the first so many pictures only; null = all.")


class CaptionedDataset(Sequence[CaptionedImage]):
    """Captioned pictures in a fixed order: an item is read from disk when asked for, and decoded by its `load`."""

    def __init__(self, rows: Any, config: DatasetConfig, caption: str | None = None, notes: Sequence[str] = ()):
        self.name = config.path
        self.notes = tuple(notes)
        self._root = _absolute(config.path)
        self._rows, self._config, self._caption = rows, config, caption

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CaptionedImage:
        """One picture, not decoded yet.

        Raises:
            DataError: The row holds no picture.
        """
        index = range(len(self))[index]
        row = self._rows[index]
        picture = row[self._config.image_column] or {}
        path, data = picture.get("path"), picture.get("bytes")
        caption = self._caption if self._caption is not None else _caption_text(row[self._config.caption_column])
        key = f"{self._config.split}[{index}]"
        if data is None and path is None:
            raise DataError(f"{self.name}/{key}: the row holds no picture.")
        if data is None and Path(path).is_relative_to(self._root):
            key = Path(path).relative_to(self._root).as_posix()
        return CaptionedImage(Path(path) if data is None else data, caption or "", key, origin=self.name)

    def images_digest(self) -> str:
        """SHA-256 of all encoded pictures, in order; reads every one of them."""
        digests = (hashlib.sha256(item.read()).hexdigest() for item in self)
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def load_captioned(config: DatasetConfig) -> CaptionedDataset:
    """Opens a data set of pictures with captions; every row must have both.

    Raises:
        DataError: The data set cannot be opened, a column is missing, or pictures lack captions.
    """
    rows = _open_rows(config)
    notes = _check_captions(rows, config)
    return CaptionedDataset(rows, config, notes=notes)


def load_uncaptioned(config: DatasetConfig, caption: str) -> CaptionedDataset:
    """Opens a data set of which only the pictures are used, all with the same caption.

    Raises:
        DataError: The data set cannot be opened or has no such column of pictures.
    """
    return CaptionedDataset(_open_rows(config), config, caption=caption)


def _open_rows(config: DatasetConfig) -> Any:
    """Opens the rows, pictures left encoded, cut to the limit."""
    rows = _open_folder(config, _absolute(config.path)) if is_local(config.path) else _open_hub(config)
    if config.image_column not in rows.column_names:
        raise DataError(_no_column(config, "image_column", config.image_column, rows))
    import datasets

    try:
        rows = rows.cast_column(config.image_column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow and datasets raise half a dozen kinds here
        feature = rows.features[config.image_column]
        raise DataError(f"{config.path}: column {config.image_column!r} holds {feature}, not pictures.") from error
    if len(rows) == 0:
        raise DataError(f"{config.path}: split {config.split!r} has no pictures.")
    return rows if config.limit is None else rows.select(range(min(config.limit, len(rows))))


def _open_hub(config: DatasetConfig) -> Any:
    import datasets  # over a second to import, and not needed for a folder of photos

    try:
        return datasets.load_dataset(config.path, split=config.split, revision=config.revision)
    except Exception as error:  # the library, its file systems and its network layers each raise their own
        raise DataError(
            f"{config.path}: not a folder here, and it cannot be opened as a data set of the Hugging Face Hub, "
            f"split {config.split!r} ({error})."
        ) from error


def _open_folder(config: DatasetConfig, root: Path) -> Any:
    """Opens a local folder: parquet files, else pictures with metadata, else pictures with caption files."""
    import datasets

    if not root.is_dir():
        raise DataError(missing_folder(root))
    if config.revision is not None:
        raise DataError(f"{config.path}: revision={config.revision!r} is for data sets of the Hub, this is a folder.")
    folder = _split_folder(root, config.split)
    parquet = sorted(path for path in folder.rglob("*.parquet") if path.name not in METADATA_FILES)
    pictures = _pictures_below(folder)
    has_metadata = any(path.name in METADATA_FILES for path in folder.rglob("metadata.*"))
    try:
        if parquet and not pictures:
            files = [str(path) for path in parquet]
            return datasets.Dataset.from_parquet(files, split=config.split)
        if pictures and has_metadata:
            # `data_files` switches off guessing splits from file names: "test_drive.png" is no test picture.
            rows = datasets.load_dataset(
                "imagefolder",
                data_dir=glob.escape(str(folder)),
                data_files={config.split: "**"},
                split=config.split,
                drop_labels=True,
            )
            _check_metadata(config, rows, folder, pictures)
            return rows
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{config.path}: cannot be opened as a data set ({error.__cause__ or error}).") from error
    return _open_sidecars(config, folder)


def _open_sidecars(config: DatasetConfig, folder: Path) -> Any:
    """Makes rows of a folder whose captions lie in text files beside the pictures; without any, of the pictures."""
    import datasets

    images = list_images(folder).images
    if not images and _pictures_below(folder):
        raise DataError(f"{folder}: pictures lie in subfolders only; write a metadata.jsonl that names them all.")
    if not images:
        raise DataError(f"{folder}: no pictures (png, jpg, webp, bmp) and no parquet files.")
    columns: dict[str, Any] = {config.image_column: [str(path) for path in images]}
    features = {config.image_column: datasets.Image(decode=False)}
    sidecars = read_sidecars(folder, images)
    if sidecars.files:
        if problems := sidecars.coverage_problems(images):
            raise DataError(list_problems(f"{config.path}: the captions cannot be used:", problems))
        columns[config.caption_column] = [sidecars.captions[path.name] for path in images]
        features[config.caption_column] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _split_folder(root: Path, split: str) -> Path:
    """The folder of a split: the subfolder of its name, unless the root itself holds metadata."""
    if (root / split).is_dir() and not any((root / name).is_file() for name in METADATA_FILES):
        return root / split
    if split != "train":
        raise DataError(f"{root}: no split {split!r}: there is no such subfolder, only 'train' can be used.")
    return root


def _pictures_below(folder: Path) -> set[str]:
    """Paths of all pictures in a folder and its subfolders, hidden ones left out."""
    found = set()
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        found.update(os.path.join(parent, name) for name in names if is_image_name(name))
    return found


def _check_metadata(config: DatasetConfig, rows: Any, folder: Path, pictures: set[str]) -> None:
    """Refuses pictures without metadata, which imagefolder would leave out in silence, and metadata without picture."""
    if config.image_column not in rows.column_names:
        return  # reported with the columns that there are
    items = rows.data.column(config.image_column).to_pylist()
    listed = {os.path.normpath(item["path"]) for item in items if item and item["path"]}
    problems = []
    if unnamed := sum(not item or not item["path"] for item in items):
        problems.append(f"{unnamed} rows of the metadata have no file_name")
    if absent := sorted(listed - pictures):
        names = [os.path.relpath(path, folder) for path in absent]
        problems.append(f"{len(absent)} pictures of the metadata are not in the folder: {shorten(names)}")
    if extra := sorted(pictures - listed):
        names = [os.path.relpath(path, folder) for path in extra]
        problems.append(
            f"{len(listed & pictures)} of {len(pictures)} images are captioned: {shorten(names)} have no metadata"
        )
    if problems:
        raise DataError(list_problems(f"{folder}: metadata and pictures do not match:", problems))


def _check_captions(rows: Any, config: DatasetConfig) -> list[str]:
    """Requires a text in every row; returns what is worth knowing about them."""
    if config.caption_column not in rows.column_names:
        raise DataError(_no_column(config, "caption_column", config.caption_column, rows))
    captions = [_caption_text(value) for value in rows.data.column(config.caption_column).to_pylist()]
    if missing := [str(index) for index, caption in enumerate(captions) if caption is None]:
        raise DataError(
            f"{config.path}: column {config.caption_column!r} holds no text in {len(missing)} of {len(captions)} rows: "
            f"{shorten(missing)}. Columns: {', '.join(rows.column_names)}."
        )
    notes = [f"{len(captions)} of {len(captions)} images captioned"]
    if empty := sum(not caption for caption in captions):
        notes.append(f"{empty} captions are empty")
    return notes


def _caption_text(value: Any) -> str | None:
    """The caption of a cell: its text, the first of several texts, or None."""
    if isinstance(value, list) and value:
        value = value[0]
    return tidy(value) if isinstance(value, str) else None


def _no_column(config: DatasetConfig, field: str, name: str, rows: Any) -> str:
    message = f"{config.path}: no column {name!r}; columns: {', '.join(rows.column_names)}. Set {field}"
    if field == "caption_column" and is_local(config.path):
        return f"{message}, or write captions: metadata.jsonl, or NAME.txt beside each picture."
    return f"{message}."


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()
