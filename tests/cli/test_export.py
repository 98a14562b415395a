"""An adapter's run from the command line: its small files, every format, and a run without its photos."""

import shutil

import pytest
from safetensors.numpy import load_file

from jaxbooth.export.peft_lora import load_peft_lora
from jaxbooth.export.tensor_file import read_tensors

NO_PICTURES = ["sample.prompts=[]", "sample.class_prompts=[]", "prior.loss_weight=0"]
PIVOTAL = ["method.type=pivotal", "method.rank=2", r"method.targets=attn2\.to_q$", "subjects.0.token=<rex>"]
ADAPTER = {
    "peft-lora/README.md", "peft-lora/pytorch_lora_weights.safetensors", "peft-lora/learned_embeds.safetensors",
    "kohya-lora/README.md", "kohya-lora/rex.safetensors", "kohya-lora/embeddings/emb-rex.safetensors",
}  # fmt: skip


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_adapter_run_leaves_small_files_and_goes_on_without_its_photos(small_config, one_device, call, tmp_path):
    code, out, err = call("train", small_config, *PIVOTAL, *NO_PICTURES)
    run = tmp_path / "runs" / "rex"
    assert code == 0, err
    assert out.splitlines()[-1] == "adapter: runs/rex/adapter"
    assert files(run / "adapter") == ADAPTER and not (run / "pipeline").exists()
    assert sum(path.stat().st_size for path in (run / "adapter").rglob("*") if path.is_file()) < 100_000
    card = (run / "adapter" / "peft-lora" / "README.md").read_text()
    assert "- steps: 2\n" in card and "adamw, learning rate 5e-06, batch size 4" in card and str(tmp_path) not in card
    shutil.rmtree(tmp_path / "photos")

    code, out, err = call("export", run, "half", "--format", "peft-lora", "--strength", 0.5, "--dtype", "float16")
    assert code == 0 and out.strip().endswith("half"), err
    whole, half = load_peft_lora(run / "adapter" / "peft-lora"), load_peft_lora(tmp_path / "half")
    assert load_file(tmp_path / "half" / "learned_embeds.safetensors")["<rex>"].dtype == "float16"
    for path, layer in whole.items():
        assert half[path].delta() == pytest.approx(0.5 * layer.delta(), rel=2e-3, abs=1e-6)
        assert abs(layer.delta()).max() > 0
    assert "- strength: 0.5\n" in (tmp_path / "half" / "README.md").read_text()

    assert call("export", run, "again", "--format", "kohya-lora")[0] == 0
    (after, header), (before, old_header) = (
        read_tensors(folder / "rex.safetensors") for folder in (tmp_path / "again", run / "adapter" / "kohya-lora")
    )
    assert header == old_header and header["jaxbooth_base"] in card
    assert {name: array.tobytes() for name, array in after.items()} == {n: a.tobytes() for n, a in before.items()}

    code, out, err = call("export", run, "whole")
    assert code == 0 and (tmp_path / "whole" / "model_index.json").is_file(), err

    flags = ["--num", 1, "--steps", 1, "--guidance", 1, "--sampler", "euler_ancestral"]
    code, out, err = call("sample", run, "--prompt", "a <rex> dog", "--out", "drawn", *flags)
    assert code == 0 and (tmp_path / out.strip()).is_file(), err


def test_formats_that_do_not_fit_are_refused_before_anything_is_loaded(config, call, tmp_path):
    run = tmp_path / "runs" / "rex"
    run.mkdir(parents=True)
    shutil.copy(config, run / "config.yaml")
    code, _, err = call("export", run, "out", "--format", "ti")
    assert code == 2 and "method dreambooth cannot be exported as ti; it can be as diffusers, merged" in err
    code, _, err = call("export", "pocket", "out", "--format", "kohya-lora")
    assert code == 2 and "a model without a run cannot be exported as kohya-lora" in err
    code, _, err = call("export", "pocket", "out", "--dtype", "int4")
    assert code == 2 and "dtype int4 is not known" in err
    code, _, err = call("export", "pocket", "out", "--strength", 0.5)
    assert code == 2 and "no strength to set" in err
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "merge.json").write_text('{"how": "gating"}')
    code, _, err = call("export", "both", "out")
    assert code == 2 and "both holds gated concepts" in err
    assert not (tmp_path / "out").exists()


def test_dry_run_names_the_adapter_folder(config, call):
    code, out, err = call("train", config, "--dry-run", *PIVOTAL)
    assert code == 0, err
    assert "runs/rex/adapter" in out and "runs/rex/pipeline" not in out
