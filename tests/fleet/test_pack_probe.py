"""Subjects of a pack are probed each by itself, and one that gets no better stands still."""

import pytest
from small_packs import NO_PICTURES, fleet_of, job_of, one_quick_device, read_lines, solo_losses, write_fleet
from twins import SMALLEST, make_twin

from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.pack_run import run_job

PROBE = {"every_steps": 1, "rows": 2, "timesteps": 2, "stop_after": 2}


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a fleet with a probe."""
    base = make_twin(tmp_path_factory.mktemp("base") / "base", "sd1", **SMALLEST)
    with one_quick_device(tmp_path_factory.getbasetemp() / "cache"):

        def write(folder, subjects, **probe):
            train = {"steps": 6, "log_every_steps": 1, "probe": PROBE | probe}
            write_fleet(folder, base, subjects, train=train, **NO_PICTURES, checkpoint={"save_every_steps": 100})

        yield write


@pytest.mark.slow
def test_each_has_its_own_figures_and_its_own_end(write, tmp_path):
    write(tmp_path, {"ann": {}, "wild": {"learning_rate": 1.0}})  # at which nothing gets better
    run_job(job_of(tmp_path, ["ann", "wild"], size=2))
    store, keys, found = OutputStore(tmp_path / "out"), fleet_of(tmp_path).keys, {}
    for name in ("ann", "wild"):
        lines = read_lines(store.folder(name, keys[name]) / "metrics.jsonl")
        assert all(line["probe/total"] == line["probe/instance"] for line in lines)
        found[name] = [line["probe/total"] for line in lines]
    assert len(found["ann"]) == 6
    assert len(found["wild"]) == found["wild"].index(min(found["wild"])) + 3 < 6
    solo_losses(tmp_path, "ann", int(keys["ann"][:15], 16))
    alone = [line["probe/total"] for line in read_lines(tmp_path / "solo-ann" / "metrics.jsonl")]
    assert found["ann"] == pytest.approx(alone[1:], rel=1e-5)  # which begin with the base's


@pytest.mark.slow
def test_who_has_too_few_photos_to_hold_one_out_is_given_up_alone(write, tmp_path):
    write(tmp_path, {"ann": {}, "few": {"min_images": 1}}, held_out=1)
    for photo in sorted((tmp_path / "photos" / "few").glob("*.png"))[1:]:
        photo.unlink()
    run_job(job_of(tmp_path, ["ann", "few"], size=2))
    store, keys = OutputStore(tmp_path / "out"), fleet_of(tmp_path).keys
    assert store.is_done("ann", keys["ann"])
    assert "leave none to train on" in StrikeBook(store).failure("few", keys["few"])["reason"]
