"""Pictures that are not trained on, so that what is measured on them was not learned by heart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.errors import DataError


@dataclass(frozen=True)
class Stretch(Sequence[CaptionedImage]):
    """Some neighbours out of a sequence, which may be a data set that reads a row when it is asked for."""

    images: Sequence[CaptionedImage]
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.images[self.numbers[index]]


class HeldOut(NamedTuple):
    """A subject's pictures, or a data set's, in two."""

    training: Sequence[CaptionedImage]
    held_out: Sequence[CaptionedImage]


def hold_out(images: Sequence[CaptionedImage], count: int) -> HeldOut:
    """The last `count` pictures apart from the others."""
    if count == 0:
        return HeldOut(images, ())
    numbers = range(len(images))
    return HeldOut(Stretch(images, numbers[:-count]), Stretch(images, numbers[-count:]))


def check_held_out(name: str, images: Sequence[CaptionedImage], count: int) -> None:
    """Raises DataError unless a picture is left to train on."""
    if count >= len(images):
        raise DataError(
            f"train.probe.held_out: {count} of {name}'s {len(images)} pictures leave none to train on. Add pictures, "
            "or lower it."
        )
