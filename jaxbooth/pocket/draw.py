"""Draws a data set of captioned scenes: `python -m jaxbooth.pocket.draw --sprites TAR --count N --seed S --out FOLDER`.

The folder holds parquet files with the columns `image` and `text`, which `datasets.load_dataset(FOLDER)` opens in two
seconds for 50,000 scenes (as many PNG files with a metadata.jsonl take it a minute).
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random

from jaxbooth.errors import DataError, JaxboothError
from jaxbooth.pocket import scenes
from jaxbooth.pocket.sprites import Sprite, load_sprites

ROWS_PER_FILE = 10_000
NOUNS = {"subjects": scenes.NOUNS, "all": scenes.NOUNS | scenes.OTHER_NOUNS}
# Tells `datasets` that the bytes are pictures; without it they stay a struct.
FEATURES = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}


def draw_dataset(sprites: Mapping[str, list[Sprite]], count: int, seed: int, out: Path) -> list[Path]:
    """Writes `count` scenes as parquet files into a new or empty folder.

    Scene i depends on the seed and i alone: a longer data set begins with the shorter one.

    Raises:
        DataError: The folder holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: not empty; nothing is overwritten. Give another --out, or remove it.")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for start in range(0, count, ROWS_PER_FILE):
        rows = range(start, min(start + ROWS_PER_FILE, count))
        files.append(out / f"train-{start // ROWS_PER_FILE:05d}.parquet")
        _write(files[-1], [_row(sprites, seed, index) for index in rows])
        print(f"{rows.stop} of {count} scenes drawn", flush=True)
    return files


def _row(sprites: Mapping[str, list[Sprite]], seed: int, index: int) -> dict:
    scene, text = scenes.draw_scene(sprites, Random(f"{seed}:{index}"))
    buffer = io.BytesIO()
    scene.save(buffer, "PNG")
    return {"image": {"bytes": buffer.getvalue(), "path": f"{index:06d}.png"}, "text": text}


def _write(file: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", picture), ("text", pyarrow.string())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    # PNG does not compress further; small groups let a reader take a few pictures at a time.
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file, compression="none", row_group_size=1000)


def main(arguments: list[str] | None = None) -> None:
    """Command line; exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m jaxbooth.pocket.draw", description="Draw captioned scenes.")
    parser.add_argument("--sprites", type=Path, required=True, help="archive or folder of style/codepoint.webp")
    parser.add_argument("--count", type=int, required=True, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the parquet files")
    parser.add_argument("--nouns", choices=NOUNS, default="subjects", help="15 classes of subjects, or all 69 nouns")
    options = parser.parse_args(arguments)
    nouns = NOUNS[options.nouns]
    try:
        sprites = scenes.training_sprites(load_sprites(options.sprites, frozenset(nouns)), nouns)
        draw_dataset(sprites, options.count, options.seed, options.out)
    except JaxboothError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
