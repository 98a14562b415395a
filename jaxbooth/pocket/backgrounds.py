"""The thirteen places of the pocket world, each drawn anew: colours jitter, horizons move, blades and windows differ.

Their names are the words of DreamBooth's own evaluation prompts (Ruiz et al. 2023), as far as 64 px can show them.
"""

from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

SIZE = 64

Colour = tuple[int, int, int]


def jitter(rng: Random, colour: Colour, amount: int = 14) -> Colour:
    """A colour near the given one: each channel moved by up to `amount` of 255."""
    return tuple(min(255, max(0, round(channel + rng.uniform(-amount, amount)))) for channel in colour)


def white_background(rng: Random) -> Image.Image:
    """A wall of photo paper, nearly white."""
    return Image.new("RGB", (SIZE, SIZE), jitter(rng, (248, 248, 248), 5))


def beach(rng: Random) -> Image.Image:
    """Sky, a strip of sea, sand."""
    image, draw = _sky(rng, (130, 190, 250), (200, 225, 250))
    shore = _ground(rng, draw, rng.randint(26, 34), (40, 110, 190)) + 9
    _ground(rng, draw, shore, (232, 212, 160))
    return image


def snow(rng: Random) -> Image.Image:
    """A pale sky over snow, while it snows."""
    image, draw = _sky(rng, (160, 170, 235), (205, 215, 250))
    _ground(rng, draw, rng.randint(30, 40), (240, 240, 250), 6)
    for x, y in _scatter(rng, 40):
        draw.ellipse([x, y, x + 1, y + 1], fill="white")
    return image


def grass(rng: Random) -> Image.Image:
    """Sky over a meadow of single blades."""
    image, draw = _sky(rng, (120, 180, 250), (180, 215, 250))
    horizon = _ground(rng, draw, rng.randint(26, 36), (50, 130, 40))
    for x, y in _scatter(rng, 160, horizon):
        draw.line([x, y, x, y - 2], fill=jitter(rng, (70, 160, 50), 30))
    return image


def jungle(rng: Random) -> Image.Image:
    """Dark green, trunks and leaves."""
    image, draw = _sky(rng, (30, 80, 40), (20, 50, 25))
    for _ in range(14):
        left = rng.randint(-6, SIZE)
        draw.rectangle([left, 0, left + rng.randint(2, 5), SIZE], fill=jitter(rng, (60, 45, 30)))
    for x, y in _scatter(rng, 30, -6, left=-6):
        draw.ellipse([x, y, x + rng.randint(5, 12), y + rng.randint(3, 7)], fill=jitter(rng, (40, 120, 50), 30))
    return image


def wooden_floor(rng: Random) -> Image.Image:
    """Planks seen from above."""
    image, draw = _plain(jitter(rng, (170, 115, 70)))
    plank, gap = rng.randint(7, 11), (110, 70, 40)
    for y in range(0, SIZE, plank):
        end = rng.randint(0, SIZE)
        draw.line([0, y, SIZE, y], fill=gap)
        draw.line([end, y, end, y + plank], fill=gap)
    return image


def pink_fabric(rng: Random) -> Image.Image:
    """Cloth with slanting stripes."""
    image, draw = _plain(jitter(rng, (245, 150, 190)))
    for x in range(-SIZE, 2 * SIZE, rng.randint(8, 12)):
        draw.line([x, 0, x + 26, SIZE], fill=jitter(rng, (255, 185, 215), 8), width=3)
    return image


def city(rng: Random) -> Image.Image:
    """A skyline at dusk, some windows lit, above a street."""
    image, draw = _sky(rng, (130, 130, 180), (190, 175, 200))
    street, left = SIZE - 12, 0
    while left < SIZE:
        right, roof = left + rng.randint(6, 11), street - rng.randint(18, 44)
        draw.rectangle([left, roof, right, street], fill=jitter(rng, (80, 80, 125)))
        windows = [(x, y) for y in range(roof + 2, street - 2, 4) for x in range(left + 2, right - 1, 3)]
        draw.point([window for window in windows if rng.random() < 0.5], fill=(250, 225, 120))
        left = right
    _ground(rng, draw, street, (80, 80, 85))
    return image


def mountain(rng: Random) -> Image.Image:
    """Two peaks with snow on them, above a meadow."""
    image, draw = _sky(rng, (130, 160, 235), (190, 210, 250))
    for _ in range(2):
        x, peak, half = rng.randint(8, SIZE - 8), rng.randint(8, 20), rng.randint(22, 36)
        foot = SIZE - 16
        snow_line = peak + (foot - peak) // 4
        draw.polygon([(x, peak), (x - half, foot), (x + half, foot)], fill=jitter(rng, (110, 115, 140)))
        draw.polygon([(x, peak), (x - half // 4, snow_line), (x + half // 4, snow_line)], fill=(250, 250, 255))
    _ground(rng, draw, SIZE - 18, (90, 140, 80))
    return image


def blue_house(rng: Random) -> Image.Image:
    """A blue house with two windows, on grass."""
    image, draw = _sky(rng, (170, 210, 250), (215, 230, 250))
    left = rng.randint(10, 26)
    draw.rectangle([left, 24, left + 30, 50], fill=jitter(rng, (60, 100, 210)))
    draw.polygon([(left - 4, 24), (left + 15, 8), (left + 34, 24)], fill=jitter(rng, (40, 60, 130)))
    for window in (left + 4, left + 19):
        draw.rectangle([window, 29, window + 7, 36], fill=(240, 240, 200))
    _ground(rng, draw, 48, (100, 150, 80))
    return image


def wheat_field(rng: Random) -> Image.Image:
    """Stalks of ripe wheat up to the horizon."""
    image, draw = _sky(rng, (150, 195, 245), (235, 225, 190))
    horizon = _ground(rng, draw, rng.randint(24, 32), (215, 175, 70))
    for x, y in _scatter(rng, 150, horizon):
        draw.line([x, y, x + rng.randint(-1, 1), y - 4], fill=jitter(rng, (235, 200, 100), 25))
    return image


def water(rng: Random) -> Image.Image:
    """Open water with short waves."""
    image, draw = _sky(rng, (150, 200, 245), (40, 100, 170))
    horizon = _ground(rng, draw, rng.randint(20, 28), (40, 110, 180))
    for x, y in _scatter(rng, 26, horizon):
        draw.line([x, y, x + rng.randint(4, 9), y], fill=jitter(rng, (120, 180, 230), 20))
    return image


def moon(rng: Random) -> Image.Image:
    """Stars in a black sky over grey ground with craters."""
    image, draw = _plain((8, 8, 20))
    draw.point(_scatter(rng, 30), fill=(250, 250, 250))
    horizon = rng.randint(34, 42)
    draw.ellipse([-30, horizon, SIZE + 30, SIZE + 60], fill=jitter(rng, (150, 150, 155)))
    for x, y in _scatter(rng, 6, horizon + 6):
        draw.ellipse([x, y, x + rng.randint(4, 9), y + rng.randint(2, 4)], fill=jitter(rng, (115, 115, 120)))
    return image


PLACES: dict[str, Callable[[Random], Image.Image]] = {
    "on a white background": white_background,
    "on the beach": beach,
    "in the snow": snow,
    "on green grass": grass,
    "in the jungle": jungle,
    "on top of a wooden floor": wooden_floor,
    "on top of pink fabric": pink_fabric,
    "with a city in the background": city,
    "with a mountain in the background": mountain,
    "with a blue house in the background": blue_house,
    "in a wheat field": wheat_field,
    "floating on top of water": water,
    "on the moon": moon,
}


def _plain(colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), colour)
    return image, ImageDraw.Draw(image)


def _sky(rng: Random, top: Colour, bottom: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A vertical gradient over the whole picture, and the pen that draws on it."""
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), jitter(rng, top))
    column.putpixel((0, 1), jitter(rng, bottom))
    # The box runs from the middle of the first pixel to the middle of the second: no flat bands at the ends.
    image = column.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(0, 0.5, 1, 1.5))
    return image, ImageDraw.Draw(image)


def _ground(rng: Random, draw: ImageDraw.ImageDraw, top: int, colour: Colour, amount: int = 14) -> int:
    """Fills everything below `top` and returns it."""
    draw.rectangle([0, top, SIZE, SIZE], fill=jitter(rng, colour, amount))
    return top


def _scatter(rng: Random, count: int, top: int = 0, left: int = 0) -> list[tuple[int, int]]:
    """Random points of the picture at or below `top`."""
    return [(rng.randint(left, SIZE), rng.randint(top, SIZE)) for _ in range(count)]
