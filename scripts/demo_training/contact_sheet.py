"""Owns the contact sheet: eight prompts that show what a checkpoint can do, and their pictures side by side."""

from PIL import Image, ImageDraw, ImageFont

PROMPTS = (
    "a beautiful sunset over mountains",
    "a city at night with stars and the moon",
    "the sea at sunrise with a boat",
    "a snowy forest at noon",
    "a desert at dusk with a palm tree",
    "green hills at noon with a house and clouds",
    "mountains at dawn with birds",
    "a cottage by the sea on a starry night",
)
COLUMNS = 4
SCALE = 2
GAP = 12
LABEL = 26


def contact_sheet(images: list[Image.Image]) -> Image.Image:
    """Pictures twice their size, each with its prompt below."""
    width, height = (side * SCALE for side in images[0].size)
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, rows * (height + LABEL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        left = GAP + index % COLUMNS * (width + GAP)
        top = GAP + index // COLUMNS * (height + LABEL + GAP)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + height + 6), prompt, fill=(40, 40, 48), font=font)
    return sheet
