"""The renderer of a demo photograph: fabric and label, items, elastic bands, then lens and sensor.

Lengths inside a bin are in bin heights: its opening is 1 high, x runs from the left wall, y upwards from the front edge
of the floor. Equal `Photo`s give equal pixels.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

Colour = tuple[int, int, int]
Kind = Literal["box", "book", "bottle", "bag"]
Rng = np.random.Generator

FABRIC, CARDBOARD, WHITE, BLACK = (255, 229, 150), (150, 113, 84), (226, 220, 210), (34, 31, 32)
LABELS = ((110, 165, 220), (240, 120, 70), (30, 28, 34), (240, 150, 165), (105, 65, 55), (70, 75, 85))
STICKERED = 0.9  # share of the products with a white barcode sticker
INKS = ((165, 48, 48), (38, 58, 112), (44, 98, 80), (205, 140, 60), (78, 56, 94), (76, 136, 165), (120, 98, 80))


@dataclass(frozen=True)
class Product:
    """A product; lengths in bin heights."""

    kind: Kind
    title: str
    width: float  # of its front
    height: float
    depth: float  # away from the camera
    look: int  # seed of its colours and print


@dataclass(frozen=True)
class Item:
    """One item and its position in the bin; lengths in bin heights."""

    product: Product
    x: float  # of its middle
    y: float  # of its underside
    back: float  # 0 at the front of the bin, 1 at its back wall
    tilt: float  # degrees, anticlockwise
    lying: bool  # turned by 90 degrees: its height is along x

    @property
    def extent(self) -> tuple[float, float]:
        """Its width and height in the bin."""
        sides = self.product.width, self.product.height
        return sides[::-1] if self.lying else sides


@dataclass(frozen=True)
class Photo:
    """One photograph of one bin: the input of `render`."""

    width: int  # px
    height: int  # px
    bin: int  # seed of fabric, label and view, equal in all photographs of the same bin
    shot: int  # seed of light, noise and a small shift, different in each photograph
    items: tuple[Item, ...]  # farthest first: each covers those before it
    blur: float = 0.0  # radius of the blur of a lens out of focus, px

    @property
    def opening(self) -> tuple[int, int, int, int]:
        """The left, top, right and bottom of the bin's opening, px."""
        low, high = (-0.03, 0.015, -0.03, 0.02), (0.04, 0.11, 0.07, 0.11)
        edges = np.random.default_rng([self.bin, 1]).uniform(low, high)
        shift = np.random.default_rng([self.shot, 1]).normal(0, 0.006, 2)
        left, top, right, bottom = edges + np.concatenate((shift, -shift))
        right, bottom = 1 - max(right, 0.0), 1 - max(bottom, 0.0)
        w, h = self.width, self.height
        return int(max(left, 0.0) * w), int(max(top, 0.0) * h), int(right * w), int(bottom * h)


def render(photo: Photo) -> Image.Image:
    """Render `photo` as an RGB image."""
    canvas = _draw_interior(photo)
    for item in photo.items:
        _draw_item(canvas, item, photo)
    _draw_rims(canvas, photo)
    return _expose(_draw_bands(canvas, photo), photo)


def to_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85, subsampling=2)
    return out.getvalue()


def _draw_interior(photo: Photo) -> Image.Image:
    """Draw the back wall, side walls and floor, dim and folded."""
    rng = np.random.default_rng([photo.bin, 2])
    left, top, right, bottom = photo.opening
    grey = rng.uniform(0.4, 1.0)  # share of the fabric's yellow that the dark takes
    wall = np.array(FABRIC) * (1 - grey) * 0.6 + np.array((104.0, 91.0, 80.0)) * grey
    inset, floor = rng.uniform(0.03, 0.1) * (right - left), bottom - rng.uniform(0.06, 0.16) * (bottom - top)
    image = Image.new("RGB", (photo.width, photo.height), _scale_colour(wall, 0.85))
    draw = ImageDraw.Draw(image)
    for near, far, gain in ((left, left + inset, 0.7), (right, right - inset, 0.78)):
        draw.polygon([(near, top), (far, top), (far, floor), (near, bottom)], _scale_colour(wall, gain))
    ground = [(left, bottom), (left + inset, floor), (right - inset, floor), (right, bottom)]
    draw.polygon(ground, _scale_colour(wall, 1))
    for x in rng.uniform(left, right, rng.integers(2, 6)):
        draw.line([(x, top), (x + rng.normal(0, 12), floor)], _scale_colour(wall, rng.uniform(0.7, 0.95)), 2)
    return _illuminate(image.filter(ImageFilter.BoxBlur(4)), rng.uniform(0.6, 1.15, (4, 5)))


def _draw_rims(canvas: Image.Image, photo: Photo) -> None:
    """Draw the yellow rims around the opening, sagging a little, with the bin's label on one or both."""
    rng = np.random.default_rng([photo.bin, 3])
    draw = ImageDraw.Draw(canvas)
    (left, top, right, bottom), w, h = photo.opening, photo.width, photo.height
    fabric = _scale_colour(np.array(FABRIC) * rng.uniform(0.95, 1.03, 3), rng.uniform(0.95, 1.03))
    seam = _scale_colour(fabric, 0.8)
    draw.rectangle((right, -1, w, h), fabric, seam, 3)
    draw.rectangle((-1, -1, left - 1, h), fabric)
    x = np.linspace(0, w, 24)
    for edge, outside in ((top, -2), (bottom, h + 2)):
        bow = rng.uniform(-0.08, 0.12) * h * (x / w) * (1 - x / w)
        y = edge + bow + rng.uniform(-0.02, 0.02) * (x - w / 2)
        curve = list(zip(x, y, strict=True))
        draw.polygon([(0, outside), *curve, (w, outside)], fabric)
        draw.line(curve, seam, 3)
    card = _draw_label(rng, int(rng.uniform(0.11, 0.15) * min(w, 1.4 * h)))
    at, where = int(rng.uniform(0.18, 0.55) * w), rng.random()
    if where < 0.45:
        canvas.paste(card, (at, top - int(card.height * rng.uniform(0.6, 1.1)) - 3))
    if where > 0.2:
        canvas.paste(card, (at + int(rng.normal(0, 9)), bottom + int(rng.uniform(0.01, 0.05) * h)))


def _draw_label(rng: Rng, size: int) -> Image.Image:
    """Draw a coloured card `size` pixels high with a name such as 2D, an arrow and a matrix code."""
    card = Image.new("RGB", (int(size * 2.3), size), LABELS[rng.integers(len(LABELS))])
    draw, pad = ImageDraw.Draw(card), size / 7
    draw.rounded_rectangle((pad * 2, pad, size * 1.35, size - pad), pad, WHITE)
    name = f"{rng.integers(1, 4)}{'ABCDEFGHIJ'[rng.integers(10)]}"
    draw.text((pad * 2.6, size / 2), name, BLACK, _font(int(size * 0.6)), "lm", stroke_width=1)
    draw.line((pad * 8.4, pad * 2, pad * 8.4, size - pad * 2), BLACK, 1 + size // 14)
    draw.polygon([(pad * 7.6, pad * 3), (pad * 9.2, pad * 3), (pad * 8.4, pad * 1.5)], BLACK)
    code = Image.fromarray(rng.choice(np.array([25, 225], np.uint8), (11, 11)))
    card.paste(ImageOps.scale(code, size * 0.06, Image.Resampling.NEAREST), (int(size * 1.5), int(pad)))
    return card


def _draw_item(canvas: Image.Image, item: Item, photo: Photo) -> None:
    left, top, right, bottom = photo.opening
    unit, middle = bottom - top, (left + right) / 2
    scale = unit * (1 - 0.12 * item.back)  # farther items are smaller, higher and nearer the middle
    x = middle + (left + item.x * unit - middle) * (1 - 0.1 * item.back)
    y = bottom - item.y * scale - (0.01 + 0.13 * item.back) * unit
    product = item.product
    sprite = _draw_front(product, max(8, int(product.width * scale)), max(8, int(product.height * scale)))
    if item.lying:
        sprite = sprite.transpose(Image.Transpose.ROTATE_90)
    if product.kind in ("box", "book"):
        above = y - sprite.height - (top + bottom) / 2
        sprite = _add_top_and_side(sprite, product.depth * scale * 0.3, middle - x, above)
    if abs(item.tilt) > 0.5:
        sprite = sprite.rotate(item.tilt, Image.Resampling.BILINEAR, expand=True)
    gain = 1.0 - 0.35 * item.back
    sprite = sprite.point([int(v * gain) for v in range(256)] * 3 + list(range(256)))
    corner = (int(x - sprite.width / 2), int(y - sprite.height))
    soft = ImageOps.expand(sprite.getchannel("A").reduce(4).point([v * 5 // 8 for v in range(256)]), 3)
    soft = ImageOps.scale(soft.filter(ImageFilter.BoxBlur(2)), 4, Image.Resampling.BILINEAR)
    canvas.paste((18, 14, 12), (corner[0] - 9, corner[1] - 10), soft)
    canvas.paste(sprite, corner, sprite)


def _add_top_and_side(front: Image.Image, depth: float, toward: float, above: float) -> Image.Image:
    """Add the top and the side of a box that a camera in front of the bin's middle sees."""
    w, h = front.size
    shift = int(np.clip(toward / max(w, 60), -0.5, 0.5) * depth)
    rise = int(np.clip(above / 120, 0, 0.6) * depth)
    colour = np.asarray(front.resize((1, 1), Image.Resampling.BOX))[0, 0, :3]
    draw = ImageDraw.Draw(solid := Image.new("RGBA", (w + abs(shift), h + rise)))
    x, back, edge = max(0, -shift), max(0, shift), w if shift > 0 else -shift
    draw.polygon([(x, rise), (back, 0), (back + w, 0), (x + w, rise)], _scale_colour(colour, 1.08))
    draw.polygon([(edge, rise), (edge + shift, 0), (edge + shift, h), (edge, rise + h)], _scale_colour(colour, 0.5))
    solid.paste(front, (x, rise))
    return solid


@lru_cache(maxsize=32)
def _draw_front(product: Product, w: int, h: int) -> Image.Image:
    """Draw the front of a product, RGBA, `w` by `h` pixels."""
    rng = np.random.default_rng(product.look)
    plain = {"box": 0.35, "book": 0.0, "bottle": 0.0, "bag": 0.2}[product.kind]
    base = CARDBOARD if rng.random() < plain else _random_colour(rng, (*INKS, WHITE, WHITE, WHITE, BLACK, BLACK))
    ink = _random_colour(rng, (*INKS, WHITE, BLACK))
    draw_face = {"box": _draw_box, "book": _draw_spine, "bottle": _draw_bottle, "bag": _draw_bag}[product.kind]
    face = draw_face(rng, product.title, w, h, base, ink)
    if rng.random() < STICKERED:
        wide = min(rng.uniform(0.15, 0.23) * w / product.width, 0.7 * w)
        x, y = rng.uniform(0.15, 0.85) * (w - wide), rng.uniform(0.2, 0.8) * (h - wide * 0.6)
        draw = ImageDraw.Draw(face)
        draw.rectangle((x, y, x + wide, y + wide * rng.uniform(0.4, 0.8)), (*WHITE, 255))
        for bar in np.flatnonzero(rng.integers(0, 2, int(wide / 3))):
            draw.line((x + 3 + 3 * bar, y + 2, x + 3 + 3 * bar, y + 0.3 * wide), (*BLACK, 255), 2)
    return face.filter(ImageFilter.BoxBlur(0.6 + w / 500))


def _draw_box(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """Draw the front of a carton, darker towards the bottom, sometimes wrapped."""
    light = rng.uniform(0.8, 1.08, (3, 3)) * [[1], [1], [0.75]]
    face = _illuminate(_draw_print(rng, title, w, h, base, ink), light)
    if rng.random() < 0.3:
        face = _wrap(rng, face, 0.6)
    ImageDraw.Draw(face).rectangle((0, 0, w - 1, h - 1), outline=_scale_colour(base, 0.55), width=2)
    return face.convert("RGBA")


def _draw_print(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """Draw a printed panel: areas of colour, a title, lines of small print, perhaps a picture."""
    draw = ImageDraw.Draw(face := Image.new("RGB", (w, h), base))
    style, cut = rng.integers(4), rng.uniform(0.15, 0.6)
    if base == CARDBOARD:
        ink = _scale_colour(base, 0.5)
        draw.rectangle((cut * w, 0, (cut + 0.09) * w, h), _scale_colour(base, 1.12))  # tape
    elif style < 2:
        draw.polygon([(0, h * cut), (w, h * (cut + 0.25 * style)), (w, h), (0, h)], ink)
    if base != CARDBOARD and style % 2:
        picture, (x, y) = _random_colour(rng, INKS), rng.uniform((0.05, 0.3), (0.4, 0.6)) * (w, h)
        draw.rectangle((x, y, x + w * 0.45, y + h * 0.3), picture)
        draw.ellipse((x + w * 0.1, y + h * 0.05, x + w * 0.35, y + h * 0.25), _scale_colour(picture, 1.4))
    contrast = WHITE if sum(base) < 330 else _scale_colour(ink, 0.7)
    words = title.split()[:2]
    size = max(4, int(min(h * 0.18, 1.5 * w / max(map(len, words))) * rng.uniform(0.4, 0.9)))
    x, y = rng.uniform(0.05, 0.3) * w, rng.uniform(0.04, 0.45) * h
    draw.text((x, y), "\n".join(words), contrast, _font(size), stroke_width=int(style) // 2, spacing=1)
    for line in y + 2.5 * size + np.arange(rng.integers(2, 9)) * max(4, h * 0.035):
        draw.line((x, line, x + w * rng.uniform(0.2, 0.65), line), contrast, max(1, h // 110))
    return face


def _draw_spine(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """Draw the rounded spine of an upright book, its title running down."""
    draw = ImageDraw.Draw(face := Image.new("RGB", (h, w), base))
    for x in rng.uniform(0.03, 0.95, rng.integers(1, 4)):
        draw.rectangle((x * h, 0, (x + rng.uniform(0.01, 0.08)) * h, w), ink)
    size = max(4, int(min(w * 0.6, 1.5 * h / len(title))))
    draw.text((h * 0.12, w / 2), title, WHITE if sum(base) < 380 else BLACK, _font(size), "lm")
    face = _illuminate(face, np.array([[0.6], [1.0], [1.12], [1.0], [0.55]]))
    return face.transpose(Image.Transpose.ROTATE_270).convert("RGBA")


def _draw_bottle(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """Draw a bottle, jar or tin: round, so bright along one line and dark at both sides."""
    neck, cap = rng.uniform(0.25, 0.95), rng.uniform(0.08, 0.16)
    face = Image.new("RGB", (w, h), base)
    face.paste(_draw_print(rng, title, w, h // 2 + 1, _random_colour(rng, (WHITE, ink)), base), (0, int(h * 0.36)))
    ImageDraw.Draw(face).rectangle((0, 0, w, h * cap), _random_colour(rng, (WHITE, BLACK, ink)))
    face = _illuminate(face, np.array([[0.35, 0.8, 1.25, 1.0, 0.75, 0.35]]))
    draw = ImageDraw.Draw(mask := Image.new("L", (w, h)))
    draw.rounded_rectangle((w * (1 - neck) / 2, 0, w * (1 + neck) / 2, h * 0.35), w * 0.04, 255)
    draw.rounded_rectangle((0, h * (cap + 0.1 * (1 - neck)), w - 1, h - 1), w * 0.16, 255)
    face.putalpha(mask)
    return face


def _draw_bag(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """Draw something soft in clear plastic: no straight edge, folds, many small highlights."""
    face = _wrap(rng, _illuminate(_draw_print(rng, title, w, h, base, ink), rng.uniform(0.35, 1.25, (6, 7))), 1.3)
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    reach = 1 + rng.normal(0, 0.06, 28)
    across, down = (np.clip(np.sign(v) * abs(v) ** 0.5 * reach, -1, 1) for v in (np.cos(turn), np.sin(turn)))
    outline = list(zip(w / 2 * (1 + across), h / 2 * (1 + down), strict=True))
    ImageDraw.Draw(mask := Image.new("L", (w, h))).polygon(outline, 255)
    face.putalpha(mask)
    return face


def _wrap(rng: Rng, face: Image.Image, strength: float) -> Image.Image:
    """Lay crumpled clear plastic over `face`; its facets shine where they slope towards the light."""
    size = w, h = face.width // 2 + 1, face.height // 2 + 1
    glare = np.full((h, w), 0.1, np.float32)
    for cells in (5, 11, 20):
        down, across = np.gradient(_upsample(rng.normal(0, 1, (cells, cells)), size))
        slope = (down * h + across * w * np.float32(rng.normal())) / cells
        glare += 0.5 * np.exp(-np.square(slope - 1.5) * 10)
    glare *= np.clip(_upsample(rng.normal(0.5, 0.5, (4, 4)), size), 0.15, 1) * strength
    mask = Image.fromarray((np.clip(glare, 0, 0.85) * 255).astype(np.uint8)).resize(face.size)
    return Image.composite(Image.new("RGB", face.size, WHITE), face, mask)


def _draw_bands(canvas: Image.Image, photo: Photo) -> Image.Image:
    """Draw clear elastic bands of many fine strands across the opening; they veil the items."""
    rng, shot = np.random.default_rng([photo.bin, 4]), np.random.default_rng([photo.shot, 4])
    (left, top, right, bottom), h = photo.opening, photo.height
    pixels = np.array(canvas, np.float32)
    x = np.linspace(0, 1, right - left, dtype=np.float32)
    count, cover = int(rng.integers(1, 4)), rng.uniform(0.4, 0.65)  # share of the opening they veil
    clear, shine = rng.uniform((0.07, 0.33), (0.14, 0.45))
    for k in range(count):
        pitch = rng.uniform(0.010, 0.018) * h + 1.2
        strands = max(4, int((bottom - top) * cover * rng.uniform(0.85, 1.15) / count / pitch))
        middle = top + (bottom - top) * ((k + 0.5) / count + rng.uniform(-0.1, 0.1)) + shot.normal(0, 2)
        sag = (rng.uniform(-0.1, 0.14) * x * (1 - x) + rng.normal(0, 0.025) * x) * h
        sag += np.sin(x * rng.uniform(6, 20) + shot.uniform(0, 6)) * rng.uniform(0.2, 1.5)
        reach = pitch * strands / 2
        first, last = max(top, int(middle - reach - 25)), min(bottom, int(middle + reach + 25))
        strand = (np.arange(first, last, dtype=np.float32)[:, None] - middle + reach - sag) / pitch
        which = np.clip(strand, 0, strands - 1).astype(np.intp)
        inside = (strand > 0) & (strand < strands)
        place = rng.uniform(0.4, 0.6, strands).astype(np.float32)[which]
        tint = rng.normal(0, 9, strands).astype(np.float32)[which]
        ridge = np.clip(1.4 - np.abs(strand - which - place) * np.float32(0.75 * pitch), 0, 1)
        veil = inside * (clear + ridge * np.float32(shine))
        tone, window = rng.uniform(190, 220), pixels[first:last, left:right]
        behind = canvas.crop((left, first, right, last)).filter(ImageFilter.BoxBlur((1, 2)))
        window += (0.35 * inside)[..., None] * (np.asarray(behind) - window)
        for c, colour in enumerate((tone + 4 + tint, tone - 4, tone - 10 - tint)):
            window[..., c] += veil * (colour - window[..., c])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _expose(canvas: Image.Image, photo: Photo) -> Image.Image:
    """Apply a soft lens, uneven warm light, low contrast and sensor noise."""
    shot = np.random.default_rng([photo.shot, 5])
    canvas = canvas.filter(ImageFilter.BoxBlur(shot.uniform(0.4, 0.9) * photo.width / 450))
    if photo.blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(photo.blur))
    light = _upsample(shot.uniform(0.86, 1.12, (3, 3)) * shot.uniform(0.86, 1.06), canvas.size)
    noise = shot.standard_normal(light.shape, np.float32) * np.float32(shot.uniform(1.5, 4.0))
    pixels = np.array(canvas, np.float32)
    for c, (gain, floor) in enumerate(((0.72, 42), (0.69, 35), (0.63, 29))):
        pixels[..., c] = pixels[..., c] * (light * np.float32(gain)) + (noise + floor)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _illuminate(image: Image.Image, light: NDArray[np.float64]) -> Image.Image:
    """Multiply an RGB image by a coarse map of light."""
    pixels = np.asarray(image) * _upsample(light, image.size)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _upsample(coarse: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate a coarse map to `size` = (width, height); return it as (height, width)."""
    return np.asarray(Image.fromarray(coarse.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _random_colour(rng: Rng, colours: tuple[Colour, ...]) -> Colour:
    return _scale_colour(np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.1, 3), 1.0)


def _scale_colour(colour: Colour | NDArray[np.generic], gain: float) -> Colour:
    r, g, b = (min(255, int(float(c) * gain)) for c in colour)
    return r, g, b


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # the font that comes with Pillow: the same on every system
