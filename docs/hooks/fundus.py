"""A made photograph of the back of an eye: vessels branch from the optic disc.

python docs/hooks/fundus.py [FILE]

Nobody's picture: every pixel is computed. Its vessels are as wide, in pixels, as those that the
model of vessels was trained on.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, FINE = 640, 3  # pixels, and how many times finer vessels are drawn
DISC = np.array([0.27, 0.5])  # x, y of the optic disc, of the picture's size
FOVEA = np.array([0.68, 0.53])
GROUND, SHADE, GLOW = (176, 84, 38), (92, 38, 18), (236, 190, 120)  # red, green, blue
ARTERY, VEIN = (150, 52, 26), (112, 28, 18)
WIDEST, THINNEST = 9.0, 1.4  # pixels


def branches(random, place, angle, width, towards):
    """Lines (from, to, width) of a vessel and all that branch from it; places are in pixels."""
    while width > THINNEST:
        for _ in range(random.integers(9, 16)):
            # It winds, and bends around the fovea as vessels do.
            angle += random.normal(0, 0.09) + 0.02 * towards
            end = place + 6.0 * np.array([np.cos(angle), np.sin(angle)])
            if np.hypot(*(end / SIZE - FOVEA)) < 0.07 or np.hypot(*(end / SIZE - 0.5)) > 0.5:
                return
            yield place, end, width
            place, width = end, width * 0.993
        side = random.choice((-1, 1))
        yield from branches(random, place, angle + side * random.uniform(0.5, 0.9), width * 0.62, 0)
        angle, width = angle - side * 0.12, width * 0.86


def vessels(random):
    """Two masks, of arteries and of veins, 0 to 1."""
    masks = [Image.new("L", (SIZE * FINE, SIZE * FINE)) for _ in range(2)]
    for number, start in enumerate((-1.25, -1.0, 1.0, 1.25, -2.4, 2.4, -0.35, 0.4)):
        kind, small = number % 2, 0.55 if number > 3 else 1.0
        towards = -np.sign(start) if number < 4 else 0.0
        width = WIDEST * small * (1.0 if kind else 0.75)
        draw = ImageDraw.Draw(masks[kind])
        for begin, end, wide in branches(random, DISC * SIZE, start, width, towards):
            draw.line([*(FINE * begin), *(FINE * end)], fill=255, width=round(FINE * wide))
            radius = FINE * wide / 2
            x, y = FINE * end
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    smaller = [mask.resize((SIZE, SIZE), Image.Resampling.BOX) for mask in masks]
    softer = [mask.filter(ImageFilter.GaussianBlur(0.7)) for mask in smaller]
    return [np.asarray(mask, np.float64)[..., None] / 255 for mask in softer]


def mixed(picture, colour, share):
    """The picture with a share, 0 to 1, of a colour."""
    return picture + share * (np.array(colour) - picture)


def blurred(picture, radius):
    """The same, without sharp edges."""
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float64)


def fundus() -> bytes:
    """The picture, a PNG file."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE

    def distance(place):
        return np.hypot(x - place[0], y - place[1])[..., None]

    far = distance((0.5, 0.5))
    picture = mixed(np.array(GROUND, np.float64), SHADE, np.clip(2.2 * far**2, 0, 1))
    clouds = Image.fromarray(random.normal(128, 60, (24, 24)).clip(0, 255).astype(np.uint8))
    clouds = np.asarray(clouds.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64)
    picture = picture * (1 + 0.1 * (clouds[..., None] / 128 - 1))
    picture = mixed(picture, SHADE, 0.45 * np.exp(-((distance(FOVEA) / 0.085) ** 2)))
    picture = blurred(mixed(picture, GLOW, 0.95 * (distance(DISC) < 0.075)), 4)
    for mask, colour in zip(vessels(random), (ARTERY, VEIN), strict=True):
        picture = mixed(picture, np.array(colour) * (1.25 - far), 0.85 * mask)
    picture += random.normal(0, 1.2, (SIZE, SIZE, 1))
    picture *= np.clip((0.497 - far) * SIZE / 3, 0, 1)  # the camera's round field
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", default=Path("fundus.png"), type=Path)
    parser.parse_args().file.write_bytes(fundus())


if __name__ == "__main__":
    main()
