import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.images import load_image
from jaxbooth.errors import DataError
from jaxbooth.fleet.manifest import read_manifest


def write_pictures(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (24, 24), (i, 90, 200)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    """A root, `photos`, beside which lies somebody else's folder."""
    write_pictures(tmp_path / "private")
    write_pictures(tmp_path / "photos" / "rex")
    return tmp_path / "photos"


def write(folder, images, head="", more=""):
    file = folder / "subjects.yaml"
    file.write_text(f"{head}subjects:\n- name: rex\n  class_noun: dog\n{more}  images: {images}\n")
    return file


def refusal(file, **options):
    """The lines of the problems, without the heading."""
    with pytest.raises(DataError) as error:
        read_manifest(file, **options)
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]


def header(width, height):
    """A PNG of a few bytes that says it is of this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_paths_may_be_relative_or_absolute_below_the_root(photos, tmp_path):
    real = str((photos / "rex").resolve())
    for images in ["rex", "./rex/", "../photos/rex", "rex/../rex", photos / "rex"]:
        assert read_manifest(write(photos, images)).entries[0].subject.images == real
    os.symlink(photos / "rex", photos / "link")
    assert read_manifest(write(photos, "link")).entries[0].subject.images == real
    assert read_manifest(write(tmp_path, "rex"), root=photos).entries[0].subject.images == real
    assert read_manifest(write(photos, "private"), root=tmp_path).entries


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("../private", "'../private' leads out of"),
        ("/etc", "'/etc' leads out of"),
        ("/", "'/' leads out of"),
        ("rex/../../private", "leads out of"),
        ("../nowhere", "leads out of"),
        ("../photos2", "leads out of"),
        ("link", "'link' is a link that leads out of"),
        ("link/inner", "'link/inner' is a link that leads out of"),
        ("hf:owner/dogs", "is a data set of the Hub: a fleet's workers read local folders only"),
        ("https://example.com/rex", "is a URL: a fleet reads local folders only"),
        ("file:///etc", "is a URL"),
        ("s3://bucket/rex", "is a URL"),
        ("~/rex", "~ is not expanded here"),
        ("rxe", 'no such folder. Did you mean "'),
        ("rex/00.png", "this is a file, a folder is needed"),
        ("loop", "no such folder"),
        ("a" * 300, "no such folder"),
    ],
)
def test_paths_out_of_the_root_urls_and_missing_folders_are_refused(photos, tmp_path, images, said):
    write_pictures(tmp_path / "photos2")
    os.symlink(tmp_path / "private", photos / "link")
    os.symlink("loop", photos / "loop")
    lines = refusal(write(photos, images))
    assert len(lines) == 1 and lines[0].startswith("subjects.yaml:4: images: ") and said in lines[0]


def test_a_root_in_the_manifest_is_noted_outside_its_folder_and_bound_by_the_one_that_is_given(photos, tmp_path):
    file = write(photos, "private", head="root: ..\n")
    manifest = read_manifest(file)
    assert manifest.entries and manifest.notes[0].startswith("subjects.yaml:1: pictures are taken from")
    assert refusal(file, root=photos) == [f"subjects.yaml:1: root: '..' leads out of {photos.resolve()}"]
    assert read_manifest(write(photos, "rex", head="root: photos\n"), root=tmp_path).notes == ()
    assert "no such folder" in refusal(write(photos, "rex"), root=tmp_path / "nowhere")[0]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.png", b"", "the file is empty"),
        ("x.png", b"just some text", "not a picture that can be read"),
        ("x.jpg", b"<html>", "this is HTML, XML or SVG text"),
        ("x.png", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("x.gif", b"GIF89a" + bytes(40), "this is a GIF"),
        ("x.png", header(9000, 9000), "9000x9000 pixels, more than 64 megapixels"),
        ("x.png", header(60_000, 60_000), "pixels"),
        ("x.png", header(8, 100), "8x100 pixels, the shorter side"),
        ("x.png", header(20, 400), "longer than 8 to 1"),
        ("x.png", header(30, 30)[:20], "cannot be read"),
        ("x.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "x.webp"),
        ("x.jpg", b"\xff\xd8\xff\xe0", "x.jpg"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_pictures_are_refused_by_their_headers(photos, name, data, said):
    (photos / "rex" / name).write_bytes(data)
    with pytest.raises(DataError):
        load_image(photos / "rex" / name)
    lines = refusal(write(photos, "rex"))
    assert len(lines) == 1 and lines[0].startswith(f"subjects.yaml:4: rex/{name}: ") and said in lines[0]


def test_an_animation_a_big_file_and_a_pipe_are_refused(photos):
    frames = [Image.new("RGB", (24, 24), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(photos / "rex" / "a.png", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "rex" / "b.webp", save_all=True, append_images=frames[1:])
    with (photos / "rex" / "c.jpg").open("wb") as file:
        file.truncate(129 * 2**20)
    os.mkfifo(photos / "rex" / "d.png")
    lines = refusal(write(photos, "rex"))
    said = [
        "an animation of 2 frames",
        "an animation of 2 frames",
        "129 MiB, the limit is 128 MiB",
        "not a regular file",
    ]
    assert len(lines) == 4 and all(words in line for words, line in zip(said, lines, strict=True))


def test_good_pictures_of_every_format_pass_and_junk_is_passed_over(photos):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    for suffix in ["jpg", "webp", "bmp"]:
        image.save(photos / "rex" / f"x.{suffix}")
    Image.fromarray(rng.integers(0, 2**16, (30, 40), np.uint16)).save(photos / "rex" / "16.png")
    (photos / "rex" / "Thumbs.db").write_bytes(b"junk")
    (photos / "rex" / "old").mkdir()
    assert read_manifest(write(photos, "rex", more="  min_images: 7\n")).entries


def test_too_few_pictures_are_told_with_what_was_passed_over(photos):
    (photos / "rex" / "02.png").unlink()
    (photos / "rex" / "raw.cr2").touch()
    lines = refusal(write(photos, "rex"))
    assert lines == [
        "subjects.yaml:4: rex: 2 images found, 3 or more are needed (png, jpg, webp, bmp). Ignored: raw.cr2. "
        "Add pictures, or lower min_images."
    ]
    assert read_manifest(write(photos, "rex", more="  min_images: 2\n")).entries
    assert read_manifest(write(photos, "rex"), defaults={"min_images": 2}).entries


def test_links_in_a_folder_may_not_leave_the_root(photos, tmp_path):
    os.symlink(photos / "rex" / "00.png", photos / "rex" / "inside.png")
    assert read_manifest(write(photos, "rex")).entries
    os.symlink(tmp_path / "private" / "00.png", photos / "rex" / "other.png")
    os.symlink("/etc/passwd", photos / "rex" / "00.txt")
    lines = refusal(write(photos, "rex", more="  captions: sidecar\n"))
    assert [line.split(": ")[1] for line in lines] == ["rex/00.txt", "rex/other.png"]
    assert all("is a link that leads out of" in line for line in lines)


def test_captions_beside_the_pictures_must_be_complete(photos):
    (photos / "rex" / "00.txt").write_text("a sks dog")
    file = write(photos, "rex", more="  captions: sidecar\n")
    assert "rex: 1 of 3 images are captioned: 01.png, 02.png have no caption" in refusal(file)[0]
    for name in ["01", "02"]:
        (photos / "rex" / f"{name}.txt").write_text("a sks dog")
    assert read_manifest(file).entries


def test_masks_must_be_there_as_far_as_headers_tell(photos):
    file = write(photos, "rex")
    assert [line.split(". ")[0] for line in refusal(file, masks="alpha")] == [
        f"subjects.yaml:4: rex/{i:02d}.png: has no transparency to take the mask from" for i in range(3)
    ]
    assert "rex: 3 of 3 pictures have no mask: 00.png, 01.png, 02.png. Save" in refusal(file, masks="sidecar")[0]
    for i in range(3):
        Image.new("L", (24, 24), 255).save(photos / "rex" / f"{i:02d}.mask.png")
    assert read_manifest(file, masks="sidecar").entries
    (photos / "rex" / "01.mask.png").write_bytes(b"text")
    assert "01.mask.png: not a picture" in refusal(file, masks="sidecar")[0]
    for i in range(3):
        Image.new("RGBA", (24, 24), (9, 9, 9, 0)).save(photos / "rex" / f"{i:02d}.png")
    assert read_manifest(file, masks="alpha").entries


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_refused(photos):
    (photos / "rex").chmod(0)
    assert "cannot be listed" in refusal(write(photos, "rex"))[0]
