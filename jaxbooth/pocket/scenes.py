"""Captioned scenes: a sprite, sometimes tinted, set into a place; the caption is exact by construction.

"a red backpack on the beach"        "an apple in the snow"        "a dog" (the place is there but not told)
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from random import Random

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from jaxbooth.pocket.backgrounds import PLACES, SIZE, Colour
from jaxbooth.pocket.sprites import Sprite


def _by_codepoint(words: str) -> dict[str, str]:
    pairs = (entry.split("=") for entry in words.split(", "))
    return {codepoint: noun for noun, codepoints in pairs for codepoint in codepoints.split()}


# First codepoint -> noun. These are classes of DreamBooth's kind: what a subject can be.
NOUNS = _by_codepoint(
    "dog=1f415 1f436 1f429 1f9ae, cat=1f408 1f431, stuffed animal=1f9f8, bowl=1f963 1f35c, can=1f96b, candle=1f56f, "
    "clock=23f0 1f570, sneaker=1f45f, boot=1f97e 1f462, glasses=1f453 1f576, teapot=1fad6, vase=1f3fa, "
    "toy=1fa86 1f916, duck=1f986, backpack=1f392"
)
# More things of the world, for a base that is trained for long and for the autoencoder.
OTHER_NOUNS = _by_codepoint(
    "evergreen=1f332, cactus=1f335, sunflower=1f33b, mushroom=1f344, grapes=1f347, lemon=1f34b, banana=1f34c, "
    "apple=1f34e, cherries=1f352, strawberry=1f353, hamburger=1f354, pizza=1f355, bread=1f35e, doughnut=1f369, "
    "cookie=1f36a, balloon=1f388, guitar=1f3b8, trumpet=1f3ba, violin=1f3bb, mouse=1f401 1f42d, cow=1f404 1f42e, "
    "tiger=1f405 1f42f, rabbit=1f407 1f430, whale=1f40b, snail=1f40c, horse=1f40e 1f434, pig=1f416 1f437, "
    "elephant=1f418, fish=1f41f, turtle=1f422, penguin=1f427, frog=1f438, bear=1f43b, panda=1f43c, crown=1f451, "
    "ring=1f48d, camera=1f4f7, television=1f4fa, key=1f511, hammer=1f528, rocket=1f680, bus=1f68c, "
    "automobile=1f697, ship=1f6a2, bicycle=1f6b2, carrot=1f955, egg=1f95a, lion=1f981, owl=1f989, fox=1f98a, "
    "butterfly=1f98b, umbrella=2602, tent=26fa, airplane=2708"
)

# The demo subjects. Every sprite of such a pair stays out of training for ever, not the subject's own codepoint alone:
# Twemoji's guide dog is Twemoji's dog with a harness.
HELD_OUT = frozenset(
    {
        ("twemoji", "dog"),
        ("noto", "cat"),
        ("emojione", "backpack"),
        ("twemoji", "stuffed animal"),
        ("noto", "vase"),
        ("twemoji", "sneaker"),
    }
)

COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "blue": (50, 90, 220),
    "green": (40, 160, 70),
    "yellow": (235, 200, 40),
    "purple": (140, 60, 190),
    "orange": (240, 140, 30),
    "pink": (240, 130, 180),
}
COLOUR_SHARE = 0.25  # of the scenes, tinted
BARE_SHARE = 0.15  # of the captions, without the place: class prompts ("a dog") are part of the language


def training_sprites(sprites: Iterable[Sprite], nouns: Mapping[str, str] = NOUNS) -> dict[str, list[Sprite]]:
    """Sprites by noun: those that have one of the given nouns and are not held out."""
    by_noun = defaultdict(list)
    for sprite in sprites:
        noun = nouns.get(sprite.codepoint.split("-")[0])
        if noun and (sprite.style, noun) not in HELD_OUT:
            by_noun[noun].append(sprite)
    return dict(sorted(by_noun.items()))


def draw_scene(sprites: Mapping[str, list[Sprite]], rng: Random) -> tuple[Image.Image, str]:
    """One 64 px RGB scene and its caption; every noun is as likely as any other, and so is every place."""
    noun = rng.choice(list(sprites))
    image = rng.choice(sprites[noun]).image
    colour = rng.choice(list(COLOURS)) if rng.random() < COLOUR_SHARE else ""
    place = rng.choice(list(PLACES))
    scene = compose(tint(image, COLOURS[colour]) if colour else image, place, rng)
    return scene, caption(noun, colour, "" if rng.random() < BARE_SHARE else place)


def caption(noun: str, colour: str = "", place: str = "") -> str:
    """The sentence of a scene: "a red backpack on the beach"."""
    article = "an" if (colour or noun)[0] in "aeiou" else "a"
    return " ".join(word for word in (article, colour, noun, place) if word)


def compose(sprite: Image.Image, place: str, rng: Random) -> Image.Image:
    """Sets a sprite into a place: 30 to 50 px wide or high, mirrored or not, tilted a little, on its shadow."""
    sprite = pose(sprite, rng.randint(30, 50), rng)
    left = round((SIZE - sprite.width) / 2 + rng.uniform(-8, 8))
    top = round(SIZE - 6 - sprite.height - rng.uniform(0, 8))
    scene = PLACES[place](rng)
    if place != "on a white background" or rng.random() < 0.5:
        scene = with_shadow(scene, left, left + sprite.width, top + sprite.height)
    scene.paste(sprite, (left, top), sprite)
    return scene


def pose(sprite: Image.Image, longest_side: int, rng: Random) -> Image.Image:
    """A sprite as it will stand: its longest side `longest_side` px, mirrored or not, tilted a little."""
    factor = longest_side / max(sprite.size)
    sprite = sprite.resize([max(6, round(side * factor)) for side in sprite.size], Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        sprite = ImageOps.mirror(sprite)
    return sprite.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)


def tint(sprite: Image.Image, colour: Colour) -> Image.Image:
    """The sprite in shades of one colour: bright where it was bright, its outline unchanged."""
    ramp = [tuple(min(255, round(channel * (0.35 + 0.9 * level / 255))) for channel in colour) for level in range(256)]
    brightness = sprite.convert("RGB").convert("L", matrix=(1 / 3, 1 / 3, 1 / 3, 0))
    channels = [brightness.point([shade[channel] for shade in ramp]) for channel in range(3)]
    return Image.merge("RGBA", [*channels, sprite.getchannel("A")])


def with_shadow(scene: Image.Image, left: int, right: int, bottom: int) -> Image.Image:
    """The scene with a soft shadow under what will stand between `left` and `right` and down to `bottom`, in px."""
    inset = (right - left) * 0.1
    shadow = Image.new("L", scene.size)
    ImageDraw.Draw(shadow).ellipse([left + inset, bottom - 4, right - inset, bottom + 3], fill=90)
    shadow = shadow.filter(ImageFilter.GaussianBlur(2))
    return Image.composite(Image.new("RGB", scene.size, (20, 20, 20)), scene, shadow)
