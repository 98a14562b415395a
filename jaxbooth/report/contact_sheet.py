"""One picture that shows a run at a glance: photos, prompts before and after, the class before and after."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, LABEL, MARGIN = 128, 14, 4  # pixels
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Row:
    """A titled line of pictures with a caption under each."""

    title: str
    images: list[Image.Image]
    captions: list[str]


def contact_sheet(rows: list[Row], file: Path) -> Path:
    """Draws the rows below each other into a PNG."""
    rows = [row for row in rows if row.images]
    width = MARGIN + max(len(row.images) for row in rows) * (CELL + MARGIN)
    height = sum(2 * LABEL + CELL + 2 * MARGIN for _ in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    top = MARGIN
    for row in rows:
        draw.text((MARGIN, top), row.title, fill=INK, font=font)
        for column, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            left = MARGIN + column * (CELL + MARGIN)
            sheet.paste(_cell(image), (left, top + LABEL))
            draw.text((left, top + LABEL + CELL), _fitted(caption, draw, font), fill=INK, font=font)
        top += 2 * LABEL + CELL + 2 * MARGIN
    sheet.save(file)
    return file


def _cell(image: Image.Image) -> Image.Image:
    # Small pictures are enlarged without smoothing, so that the sheet shows what was drawn and nothing else.
    small = max(image.size) <= CELL
    image = image.convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    return image


def _fitted(text: str, draw: ImageDraw.ImageDraw, font) -> str:
    """The end of a caption that fits under its picture: the scene is said last."""
    if draw.textlength(text, font=font) <= CELL:
        return text
    while text and draw.textlength("…" + text, font=font) > CELL:
        text = text[1:]
    return "…" + text
