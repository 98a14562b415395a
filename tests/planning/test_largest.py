from dataclasses import replace

import pytest
from small_recipe import said

from jaxbooth.planning.largest import largest_that_fits, sizes_to_try


def asked(room: int, sizes, first, numbers=True) -> tuple[list[int], int | None]:
    """Sizes in the order in which the compiler was asked, and the answer, where packs up to `room` fit."""
    order = []

    def plan(size):
        order.append(size)
        answer = said(size, size <= room)
        needed = answer.needed_bytes if numbers or answer.fits else None
        return replace(answer, needed_bytes=needed, available_bytes=room * 2**30)

    plans = largest_that_fits(plan, sizes, first)
    assert list(plans) == order and len(set(order)) == len(order)
    return order, max((size for size in plans if plans[size].fits), default=None)


def test_sizes_end_with_the_first_that_holds_everybody():
    assert sizes_to_try(lambda size: True, 20) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert sizes_to_try(lambda size: True, 16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert sizes_to_try(lambda size: size % 8 == 0, 20) == [8, 16, 24]
    assert sizes_to_try(lambda size: size % 8 == 0, 1) == [8]
    assert sizes_to_try(lambda size: False, 20) == []


@pytest.mark.parametrize(
    ("room", "order", "answer"),
    [
        (8, [8, 16, 12], 8),
        (14, [8, 16, 12], 12),
        (100, [8, 16, 96, 128], 96),
        (200, [8, 16, 128], 128),
        (5, [8, 6, 4], 4),
        (1, [8, 6, 1, 2], 1),
        (0, [8, 6, 1], None),
    ],
)
def test_the_compiler_is_asked_for_few_sizes(room, order, answer):
    sizes = sizes_to_try(lambda size: True, 128)
    assert asked(room, sizes, 8) == (order, answer)


def test_no_answer_is_far_from_the_last():
    sizes = sizes_to_try(lambda size: True, 4096)
    assert asked(10**6, sizes, 1)[0] == [1, 2, 16, 128, 1024, 4096]


def test_the_answer_is_the_largest_of_the_sizes_that_fits():
    sizes = sizes_to_try(lambda size: True, 300)
    for room in range(1, 400):
        for numbers in (True, False):
            assert asked(room, sizes, 8, numbers)[1] == max(size for size in sizes if size <= room)


def test_where_there_is_one_size_it_is_asked_for():
    assert asked(8, [8], 8) == ([8], 8)
    assert asked(7, [8], 8) == ([8], None)


def test_what_the_compiler_saves_where_room_is_short_is_not_taken_for_the_line():
    order = []

    def plan(size):
        # Along a line up to 14 GiB of 16; then with more and more computed again, up to 64.
        order.append(size)
        needed = min(6 + size / 4, 14 + size / 64) if size <= 64 else 6 + size / 4
        return replace(said(size, size <= 64), needed_bytes=int(needed * 2**30), available_bytes=16 * 2**30)

    plans = largest_that_fits(plan, sizes_to_try(lambda size: True, 1024), 16)
    assert max(size for size in plans if plans[size].fits) == 64
    assert order == [16, 32, 48, 64, 96]
