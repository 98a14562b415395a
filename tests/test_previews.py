from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.previews import draw_contact_sheet, draw_samples, next_files, write_images
from jaxbooth.run_folder import RunFolder

SAMPLE = {"seed": 3, "num_steps": 5, "guidance_scale": 2.0, "sampler": "ddim", "negative_prompt": "", "batch_size": 4}


class Painter:
    """Draws one grey for each prompt, darker with every call."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, **options):
        self.calls.append((prompts, options))
        return np.full((len(prompts), 16, 16, 3), 1 / len(self.calls), np.float32)


@pytest.fixture
def prepared(tmp_path):
    """As much of a prepared run as pictures need."""
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "photo.png")
    photos = (CaptionedImage(tmp_path / "photo.png", "a sks dog", "photo.png"),)
    return SimpleNamespace(
        run=RunFolder(tmp_path / "run"),
        prompts=("a sks dog", "a sks dog in the snow"),
        class_prompts=("a dog",),
        subjects=(SimpleNamespace(images=photos),),
        config=SimpleNamespace(sample=SimpleNamespace(**SAMPLE)),
        resolution=16,
        mesh=None,
    )


def test_samples_are_drawn_with_the_configured_options_and_only_once(prepared):
    painter, folder = Painter(), prepared.run.samples / "before"
    files = draw_samples(prepared, painter, folder)
    assert [file.name for file in files] == ["00.png", "01.png", "02.png"]
    ((prompts, options),) = painter.calls
    assert prompts == ["a sks dog", "a sks dog in the snow", "a dog"]
    assert options == SAMPLE | {"height": 16, "width": 16, "mesh": None}
    assert draw_samples(prepared, painter, folder) == files and len(painter.calls) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["00.png", "01.png", "02.png"]


def test_contact_sheet_has_photos_and_both_kinds_of_prompts_before_and_after(prepared):
    painter = Painter()
    for when in ("before", "after"):
        draw_samples(prepared, painter, prepared.run.samples / when)
    draw_contact_sheet(prepared)
    sheet = np.asarray(Image.open(prepared.run.path / "contact_sheet.png").convert("RGB"))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 128 * 128  # the photo
    grey = (sheet == 128).all(-1).sum()  # "after": two prompts and one class prompt
    assert 3 * 128 * 128 <= grey < 4 * 128 * 128


def test_run_that_draws_nothing_has_no_contact_sheet(prepared):
    prepared.prompts = prepared.class_prompts = prepared.subjects = ()
    painter = Painter()
    assert draw_samples(prepared, painter, prepared.run.samples / "before") == [] and painter.calls == []
    draw_contact_sheet(prepared)
    assert not prepared.run.path.exists()


def test_pictures_are_rounded_to_bytes_and_nothing_else_is_left(tmp_path):
    values = np.array([0.0, 0.2499, 0.5, 0.999, 1.0], np.float32)
    images = np.tile(values[:, None, None, None], (1, 2, 2, 3))
    files = [tmp_path / "new" / f"{index}.png" for index in range(5)]
    write_images(images, files)
    assert [int(np.asarray(Image.open(file))[0, 0, 0]) for file in files] == [0, 64, 128, 255, 255]
    assert sorted((tmp_path / "new").iterdir()) == files


def test_new_pictures_are_numbered_after_those_that_are_there(tmp_path):
    assert [file.name for file in next_files(tmp_path / "new", 2)] == ["00000.png", "00001.png"]
    for name in ("00003.png", "7.png", "cat.png", "²²².png", "00009.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in next_files(tmp_path, 2)] == ["00008.png", "00009.png"]
    assert not (tmp_path / "new").exists()
