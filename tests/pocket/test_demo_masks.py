"""The demo subjects' masks: there, and on the subject."""

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.images import list_images
from jaxbooth.data.subjects import SubjectConfig, load_subject
from jaxbooth.pocket import DEMO_SUBJECTS


@pytest.mark.parametrize("subject", DEMO_SUBJECTS, ids=lambda subject: subject.name)
def test_every_picture_has_a_mask_that_the_gate_takes(subject):
    config = SubjectConfig(name=subject.name, images=str(subject.folder), class_noun=subject.class_noun)
    loaded = load_subject(config, masks="sidecar")
    for image in loaded.images:
        assert 0.05 < image.load_mask().mean() < 0.5


@pytest.mark.parametrize("subject", DEMO_SUBJECTS, ids=lambda subject: subject.name)
def test_on_the_white_picture_the_mask_is_what_is_not_white(subject):
    path = list_images(subject.folder).images[0]
    picture = np.asarray(Image.open(path).convert("RGB"), np.int32)
    mask = np.asarray(Image.open(path.parent / "masks" / path.name))
    coloured = np.ptp(picture, axis=-1) > 60  # of no grey: neither ground nor shadow
    assert (coloured & (mask > 25)).sum() > 0.95 * coloured.sum()  # a pixel of the outline is coloured in part
    ground = np.abs(picture - picture[0, 0]).max(-1) < 6
    assert (ground & (mask > 127)).sum() < 0.02 * ground.sum()
