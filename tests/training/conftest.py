import shutil

import pytest
from checkpoint_states import make_mesh, make_state, save_steps, shapes_of
from program_runner import Program, free_port


@pytest.fixture(scope="session")
def mesh():
    return make_mesh(2, 2, 2)


@pytest.fixture(scope="session")
def target(mesh):
    return shapes_of(make_state(0, mesh))


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    save_steps(folder, 1, 2)
    return folder


@pytest.fixture
def folder(two_checkpoints, tmp_path):
    """A copy of a run's folder with the checkpoints 1 and 2."""
    return shutil.copytree(two_checkpoints, tmp_path / "checkpoints")


@pytest.fixture
def start(tmp_path):
    """Starts a training program in miniature; all are killed and reaped at the end of the test."""
    programs = []

    def start_one(*arguments, **options):
        programs.append(Program(tmp_path / f"errors-{len(programs)}.txt", *arguments, **options))
        return programs[-1]

    yield start_one
    for program in programs:
        program.reap()


@pytest.fixture
def start_two(start):
    """Starts the program on two processes of four devices each."""

    def start_both(*arguments):
        port = free_port()
        return [start(*arguments, "--rank", rank, "--port", port, devices=4) for rank in range(2)]

    return start_both
