"""Launch files are right as they stand, and each of many mistakes in them is found."""

import copy

import pytest
import yaml
from cluster_rules import EXCLUSIVE, jobset_problems
from documents import LAUNCH, load_documents
from effective_commands import GIVEN, launch_files
from launch_faults import FAULTS
from linter import GOLDEN, problems


@pytest.mark.parametrize("file", launch_files(), ids=lambda file: file.name)
def test_launch_file_has_nothing_wrong(file):
    assert problems(file) == []


def test_every_launch_file_is_linted_has_a_golden_command_and_both_kinds_of_faults():
    names = {file.name for file in launch_files()}
    assert names == set(GOLDEN) == set(GIVEN) == {fault.file for fault in FAULTS}
    for name in names:
        assert {fault.kind for fault in FAULTS if fault.file == name} == {"typo", "semantic"}
    assert set(names) <= set((LAUNCH / "README.md").read_text().replace("`", " ").split())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.new[:40]!r}")
def test_mistake_in_a_launch_file_is_found(fault, tmp_path):
    text = (LAUNCH / fault.file).read_text()
    assert fault.old in text, "the fault no longer fits the file"
    broken = tmp_path / fault.file
    broken.write_text(text.replace(fault.old, fault.new, 1))
    found = problems(broken)
    assert any(fault.told in problem for problem in found), found


@pytest.fixture
def on_several_hosts():
    """The JobSet for slices of four hosts with four chips each."""
    jobset, *others = copy.deepcopy(load_documents(LAUNCH / "gke_jobset.yaml"))
    jobset["metadata"]["annotations"] = {EXCLUSIVE: "cloud.google.com/gke-nodepool"}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = job["completions"] = 4
    pod = job["template"]["spec"]
    pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] = "4x4"
    for kind in ("requests", "limits"):
        pod["containers"][0]["resources"][kind]["google.com/tpu"] = "4"
    return jobset, others


def test_jobset_of_several_hosts_a_slice_is_possible_and_needs_a_node_pool_each(on_several_hosts):
    jobset, others = on_several_hosts
    assert jobset_problems(jobset, others) == []
    del jobset["metadata"]["annotations"]
    assert any(EXCLUSIVE in problem for problem in jobset_problems(jobset, others))


def test_key_that_stands_twice_is_found(tmp_path):
    file = tmp_path / "skypilot.yaml"
    file.write_text((LAUNCH / "skypilot.yaml").read_text() + "\nname: other\n")
    assert any('"name" stands twice' in problem for problem in problems(file))


def test_no_launch_file_holds_a_secret_or_a_real_digest():
    for file in launch_files():
        text = file.read_text()
        assert "hf_" not in text
        assert text.count("@sha256:") == text.count("@sha256:" + "0" * 64)
    assert list(yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["secrets"].values()) == [""]
