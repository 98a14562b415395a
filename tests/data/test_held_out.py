import pytest

from jaxbooth.data.held_out import check_held_out, hold_out
from jaxbooth.errors import DataError


class Rows:
    """A data set that cannot be sliced, and remembers what was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.read.append(range(5)[index])
        return f"row {self.read[-1]}"


def test_the_last_ones_are_held_out_and_nothing_is_read_before_it_is_asked_for():
    rows = Rows()
    training, held_out = hold_out(rows, 2)
    assert (len(training), len(held_out), rows.read) == (3, 2, [])
    assert list(training) == ["row 0", "row 1", "row 2"] and list(held_out) == ["row 3", "row 4"]
    assert training[-1] == "row 2"


def test_holding_out_nothing_leaves_the_pictures_as_they_are():
    rows = Rows()
    assert hold_out(rows, 0) == (rows, ())


@pytest.mark.parametrize("count", [5, 6])
def test_something_must_be_left_to_train_on(count):
    check_held_out("rex", Rows(), 4)
    with pytest.raises(DataError, match=f"held_out: {count} of rex's 5 pictures leave none to train on"):
        check_held_out("rex", Rows(), count)
