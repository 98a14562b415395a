"""Where a base comes from; the hub is played by a stand-in, nothing is downloaded."""

import logging
import types
from pathlib import Path

import huggingface_hub
import pytest

from jaxbooth.errors import ConversionError
from jaxbooth.pocket import BASE
from jaxbooth.weights.hub import commit_of, resolve, wanted_files

REPOSITORY = """
.gitattributes README.md model_index.json v1-5-pruned.ckpt v1-5-pruned.safetensors
feature_extractor/preprocessor_config.json safety_checker/config.json safety_checker/model.safetensors
safety_checker/pytorch_model.bin scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
text_encoder/pytorch_model.bin text_encoder/flax_model.msgpack
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
unet/config.json unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors unet/openvino_model.xml
vae/config.json vae/diffusion_pytorch_model.safetensors vae_1_0/diffusion_pytorch_model.safetensors
""".split()  # noqa: SIM905 (long names read better below each other)
WANTED = """
model_index.json scheduler/scheduler_config.json text_encoder/config.json text_encoder/model.safetensors
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
unet/config.json unet/diffusion_pytorch_model.safetensors vae/config.json vae/diffusion_pytorch_model.safetensors
""".split()  # noqa: SIM905 (long names read better below each other)
COMMIT = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"


def test_wanted_files_are_json_txt_and_one_set_of_safetensors():
    assert sorted(wanted_files(REPOSITORY)) == sorted(WANTED)


def test_wanted_files_take_a_variant_only_where_there_is_nothing_else():
    names = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert wanted_files([*names, "vae/diffusion_pytorch_model.safetensors"]) == [
        names[0],
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_wanted_files_take_all_shards():
    names = [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    fp16 = [name.replace("model-", "model.fp16-") for name in names[:2]]
    assert sorted(wanted_files(names + fp16)) == sorted(names)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has REPOSITORY at COMMIT; notes what is asked of it."""
    asked = types.SimpleNamespace(info=[], downloads=[], error=None)

    def model_info(self, repo_id, revision=None):
        if asked.error is not None:
            raise asked.error
        asked.info.append((repo_id, revision))
        return types.SimpleNamespace(sha=COMMIT, siblings=[types.SimpleNamespace(rfilename=n) for n in REPOSITORY])

    def snapshot_download(repo_id, revision, allow_patterns):
        asked.downloads.append((repo_id, revision, sorted(allow_patterns)))
        folder = tmp_path / "hub" / "snapshots" / revision
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text("{}")
        return str(folder)

    def try_to_load_from_cache(repo_id, filename, revision=None):
        found = list((tmp_path / "hub" / "snapshots").glob(f"{revision or '*'}/{filename}"))
        return str(found[0]) if found else None

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache)
    return asked


@pytest.mark.parametrize("revision", [None, "fp32", COMMIT])
def test_hub_id_is_downloaded_at_one_commit_that_the_run_can_record(hub, revision):
    folder = resolve("runwayml/stable-diffusion-v1-5", revision)
    assert hub.info == [("runwayml/stable-diffusion-v1-5", revision)]
    assert hub.downloads == [("runwayml/stable-diffusion-v1-5", COMMIT, sorted(WANTED))]
    assert commit_of(folder) == COMMIT


def test_without_network_an_earlier_download_serves(hub, caplog):
    folder = resolve("owner/name")
    hub.error = huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")
    with caplog.at_level(logging.WARNING):
        assert resolve("owner/name", COMMIT) == folder
    assert "offline mode is enabled" in caplog.text
    with pytest.raises(ConversionError, match="offline mode is enabled"):
        resolve("owner/name", "another-revision")


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), ValueError(""), RuntimeError("gated\nmore")])
def test_hub_that_cannot_be_asked_is_a_conversion_error(hub, error):
    hub.error = error
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    with pytest.raises(ConversionError, match=f"base owner/name: .*{reason}"):
        resolve("owner/name")


def test_real_client_offline_is_a_conversion_error():
    with pytest.raises(ConversionError, match="owner/there-is-no-such-name"):
        resolve("owner/there-is-no-such-name")


def test_folders_and_pocket_are_local(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name") and resolve(tmp_path) == tmp_path
    assert resolve("pocket") == BASE
    assert hub.info == [] and commit_of(BASE) is None


@pytest.mark.parametrize("path", ["/nowhere/base", "a/b/c", "poket", "~/nowhere/x", "./x", "../x", "here/x"])
def test_path_that_is_no_folder_and_no_hub_id_is_refused_without_asking(hub, path, tmp_path, monkeypatch):
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ConversionError, match="no such folder"):
        resolve(path)
    assert hub.info == []


@pytest.mark.parametrize("path", ["owner/..", "--/x", "o/x..y"])
def test_name_that_no_hub_has_is_a_conversion_error(path):
    with pytest.raises(ConversionError):
        resolve(path)


def test_misspelt_folder_is_told_its_neighbour(hub, tmp_path):
    (tmp_path / "stable-diffusion-v1-5").mkdir()
    with pytest.raises(ConversionError, match='Did you mean ".*stable-diffusion-v1-5"'):
        resolve(tmp_path / "stable-difusion-v1-5")
