"""Draws the photograph of one demo bin: fabric and label, items, elastic bands, then lens and sensor.

Lengths inside a bin are in bin heights: its opening is 1 high, x runs from the left wall and y up from the
front edge of the floor.  The same `Photo` always gives the same pixels.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Colour = tuple[int, int, int]
Kind = Literal["box", "book", "bottle", "bag"]
Rng = np.random.Generator


FABRIC, CARDBOARD, WHITE, BLACK = (255, 229, 150), (176, 136, 98), (236, 232, 224), (28, 26, 28)
LABELS = ((110, 165, 220), (240, 120, 70), (30, 28, 34), (240, 150, 165), (105, 65, 55), (70, 75, 85))
INKS = ((190, 40, 45), (30, 60, 130), (25, 110, 80), (235, 150, 40), (70, 45, 100), (60, 150, 190))


@dataclass(frozen=True)
class Product:
    """What every copy of one product shares; lengths in bin heights."""

    kind: Kind
    title: str
    width: float  # of the face it shows
    height: float
    depth: float  # away from the camera
    look: int  # seed of its colours and print


@dataclass(frozen=True)
class Item:
    """One thing in a bin and how it lies there; lengths in bin heights."""

    product: Product
    x: float  # its middle
    y: float  # its underside
    back: float  # 0 at the front of the bin, 1 at its back wall
    tilt: float  # degrees, anticlockwise
    lying: bool  # turned by a quarter: its height runs along x


@dataclass(frozen=True)
class Photo:
    """One exposure of one bin: everything `render` needs."""

    width: int  # px
    height: int  # px
    bin: int  # seed of fabric, label and view: the same before and after an item was added
    shot: int  # seed of what differs between two exposures: light, noise, a small shift
    items: tuple[Item, ...]  # farthest first: each covers those before it
    blur: float = 0.0  # radius of a lens out of focus, px

    @property
    def opening(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the bin's opening, px."""
        low, high = (-0.03, 0.015, -0.03, 0.02), (0.04, 0.11, 0.07, 0.11)
        edges = np.random.default_rng([self.bin, 1]).uniform(low, high)
        shift = np.random.default_rng([self.shot, 1]).normal(0, 0.006, 2)
        left, top, right, bottom = edges + np.concatenate((shift, -shift))
        right, bottom = 1 - max(right, 0.0), 1 - max(bottom, 0.0)
        w, h = self.width, self.height
        return int(max(left, 0.0) * w), int(max(top, 0.0) * h), int(right * w), int(bottom * h)


def render(photo: Photo) -> Image.Image:
    """Draw `photo`: an RGB image of `photo.width` by `photo.height` pixels."""
    canvas = _interior(photo)
    for item in photo.items:
        _place(canvas, item, photo)
    _rims(canvas, photo)
    return _expose(_bands(canvas, photo), photo)


def to_jpeg(image: Image.Image) -> bytes:
    """The bytes of a JPEG file of `image`, always with the same settings."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85, subsampling=2)
    return out.getvalue()


# --- the bin -------------------------------------------------------------------------------------------


def _interior(photo: Photo) -> Image.Image:
    """Back wall, side walls and floor, dim and folded."""
    rng = np.random.default_rng([photo.bin, 2])
    left, top, right, bottom = photo.opening
    grey = rng.uniform(0.35, 0.9)  # how much of the fabric's yellow is lost in the dark
    wall = np.array(FABRIC) * (1 - grey) * 0.6 + np.array((120.0, 107.0, 94.0)) * grey
    inset, floor = rng.uniform(0.05, 0.12) * (right - left), bottom - rng.uniform(0.1, 0.2) * (bottom - top)
    image = Image.new("RGB", (photo.width, photo.height), _scaled(wall, 0.85))
    draw = ImageDraw.Draw(image)
    for near, far, gain in ((left, left + inset, 0.7), (right, right - inset, 0.78)):
        draw.polygon([(near, top), (far, top), (far, floor), (near, bottom)], _scaled(wall, gain))
    ground = [(left, bottom), (left + inset, floor), (right - inset, floor), (right, bottom)]
    draw.polygon(ground, _scaled(wall, 1.05))
    for x in rng.uniform(left, right, rng.integers(2, 6)):
        draw.line([(x, top), (x + rng.normal(0, 12), floor)], _scaled(wall, rng.uniform(0.7, 0.95)), 2)
    return _lit(image.filter(ImageFilter.BoxBlur(3)), rng.uniform(0.7, 1.18, (4, 5)))


def _rims(canvas: Image.Image, photo: Photo) -> None:
    """The yellow rims around the opening, sagging a little, and the bin's label on one or both."""
    rng = np.random.default_rng([photo.bin, 3])
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = photo.opening
    w, h = photo.width, photo.height
    fabric = _scaled(np.array(FABRIC) * rng.uniform(0.95, 1.03, 3), rng.uniform(0.9, 1.0))
    seam = _scaled(fabric, 0.8)
    draw.rectangle((right, -1, w, h), fabric, seam, 3)
    draw.rectangle((-1, -1, left - 1, h), fabric)
    x = np.linspace(0, w, 24)
    for edge, outside in ((top, -2), (bottom, h + 2)):
        bow = rng.uniform(-0.02, 0.03) * h * 4 * (x / w) * (1 - x / w)
        curve = _points(x, edge + bow + rng.uniform(-0.02, 0.02) * (x - w / 2))
        draw.polygon([(0, outside), *curve, (w, outside)], fabric)
        draw.line(curve, seam, 3)
    card = _label(rng, int(rng.uniform(0.11, 0.15) * min(w, 1.4 * h)))
    at, where = int(rng.uniform(0.18, 0.55) * w), rng.random()
    if where < 0.45:
        canvas.paste(card, (at, top - int(card.height * rng.uniform(0.6, 1.1)) - 3))
    if where > 0.2:
        canvas.paste(card, (at + int(rng.normal(0, 9)), bottom + int(rng.uniform(0.01, 0.05) * h)))


def _label(rng: Rng, size: int) -> Image.Image:
    """A coloured card `size` pixels high with a name such as 2D, an arrow and a matrix code."""
    card = Image.new("RGB", (int(size * 2.3), size), LABELS[rng.integers(len(LABELS))])
    draw = ImageDraw.Draw(card)
    pad = size / 7
    draw.rounded_rectangle((pad * 2, pad, size * 1.35, size - pad), pad, WHITE)
    name = f"{rng.integers(1, 4)}{'ABCDEFGHIJ'[rng.integers(10)]}"
    draw.text((pad * 2.6, size / 2), name, BLACK, _font(int(size * 0.6)), "lm", stroke_width=1)
    draw.line((pad * 8.4, pad * 2, pad * 8.4, size - pad * 2), BLACK, 1 + size // 14)
    draw.polygon([(pad * 7.6, pad * 3), (pad * 9.2, pad * 3), (pad * 8.4, pad * 1.5)], BLACK)
    code = Image.fromarray(rng.choice(np.array([25, 225], np.uint8), (11, 11)))
    side = int(size * 0.62)
    card.paste(code.resize((side, side), Image.Resampling.NEAREST), (int(size * 1.5), int(pad)))
    return card


# --- the items -----------------------------------------------------------------------------------------


def _place(canvas: Image.Image, item: Item, photo: Photo) -> None:
    """Draw one item and the shadow it casts on what lies behind it."""
    left, top, right, bottom = photo.opening
    unit, middle = bottom - top, (left + right) / 2
    scale = unit * (1 - 0.14 * item.back)  # what is farther is smaller, higher and nearer the middle
    x = middle + (left + item.x * unit - middle) * (1 - 0.1 * item.back)
    y = bottom - item.y * scale - (0.02 + 0.13 * item.back) * unit
    product = item.product
    sprite = _face(product, max(8, int(product.width * scale)), max(8, int(product.height * scale)))
    if item.lying:
        sprite = sprite.transpose(Image.Transpose.ROTATE_90)
    if product.kind in ("box", "book"):
        above = y - sprite.height - (top + bottom) / 2
        sprite = _solid(sprite, product.depth * scale * 0.3, middle - x, above)
    if abs(item.tilt) > 0.5:
        sprite = sprite.rotate(item.tilt, Image.Resampling.BILINEAR, expand=True)
    gain = 1.0 - 0.4 * item.back
    sprite = sprite.point([int(v * gain) for v in range(256)] * 3 + list(range(256)))
    corner = (int(x - sprite.width / 2), int(y - sprite.height))
    soft = Image.new("L", (sprite.width // 4 + 6, sprite.height // 4 + 6))
    soft.paste(sprite.getchannel("A").resize((sprite.width // 4, sprite.height // 4)), (3, 3))
    soft = soft.filter(ImageFilter.BoxBlur(2)).point([int(v * 0.62) for v in range(256)])
    soft = soft.resize((soft.width * 4, soft.height * 4), Image.Resampling.BILINEAR)
    canvas.paste((18, 14, 12), (corner[0] - 9, corner[1] - 10), soft)
    canvas.paste(sprite, corner, sprite)


def _solid(front: Image.Image, depth: float, toward: float, above: float) -> Image.Image:
    """Add to the front of a box the top and the side that a camera before the bin's middle sees."""
    w, h = front.size
    shift = int(np.clip(toward / max(w, 60), -0.5, 0.5) * depth)
    rise = int(np.clip(above / 120, 0, 0.6) * depth)
    if abs(shift) < 2 and rise < 2:
        return front
    colour = np.asarray(front.resize((1, 1), Image.Resampling.BOX))[0, 0, :3]
    solid = Image.new("RGBA", (w + abs(shift), h + rise))
    draw = ImageDraw.Draw(solid)
    x, back = max(0, -shift), max(0, shift)
    draw.polygon([(x, rise), (back, 0), (back + w, 0), (x + w, rise)], _scaled(colour, 1.08))
    edge = x + w if shift > 0 else x
    draw.polygon([(edge, rise), (edge + shift, 0), (edge + shift, h), (edge, rise + h)], _scaled(colour, 0.5))
    solid.paste(front, (x, rise))
    return solid


@lru_cache(maxsize=32)
def _face(product: Product, w: int, h: int) -> Image.Image:
    """What a product shows the camera, RGBA, `w` by `h` pixels: its copies share it."""
    rng = np.random.default_rng(product.look)
    plain = {"box": 0.3, "book": 0.0, "bottle": 0.0, "bag": 0.15}[product.kind]
    base = CARDBOARD if rng.random() < plain else _pick(rng, (*INKS, WHITE, WHITE, BLACK))
    ink = _pick(rng, (*INKS, WHITE, BLACK))
    draw_face = {"box": _box, "book": _spine, "bottle": _bottle, "bag": _bag}[product.kind]
    face = draw_face(rng, product.title, w, h, base, ink)
    if rng.random() < 0.9:
        _sticker(rng, face, 0.2 * w / product.width)
    return face


def _sticker(rng: Rng, face: Image.Image, width: float) -> None:
    """The white barcode sticker of the warehouse: as wide on a large item as on a small one, px."""
    w, h = min(width, face.width * 0.8), width * 0.6
    x, y = rng.uniform(0.1, 0.9) * (face.width - w), rng.uniform(0.5, 0.85) * (face.height - h)
    draw = ImageDraw.Draw(face)
    draw.rectangle((x, y, x + w, y + h), (*WHITE, 255))
    for bar in np.flatnonzero(rng.integers(0, 2, int(w / 3))):
        draw.line((x + 3 + 3 * bar, y + 2, x + 3 + 3 * bar, y + 0.7 * h), (*BLACK, 255), 2)


def _box(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """The front of a carton, darker towards its foot, sometimes wrapped."""
    light = rng.uniform(0.88, 1.06, (3, 3))
    light[-1] *= 0.8
    face = _lit(_print(rng, title, w, h, base, ink), light)
    if rng.random() < 0.2:
        face = _wrapped(rng, face, 0.5)
    ImageDraw.Draw(face).rectangle((0, 0, w - 1, h - 1), outline=_scaled(base, 0.6))
    return face.convert("RGBA")


def _print(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """A printed panel: areas of colour, a title, lines of small print, perhaps a barcode."""
    face = Image.new("RGB", (w, h), base)
    draw = ImageDraw.Draw(face)
    style, cut = rng.integers(4), rng.uniform(0.25, 0.6)
    if base == CARDBOARD:
        ink = _scaled(base, 0.45)
        draw.rectangle((cut * w, 0, (cut + 0.09) * w, h), _scaled(base, 1.1))  # tape
    elif style == 0:
        draw.rectangle((0, 0, w, h * cut), ink)
    elif style == 1:
        draw.polygon([(0, h * cut), (w, h * (cut + 0.25)), (w, h), (0, h)], ink)
    elif style == 2:
        draw.ellipse((w * 0.2, h * (1 - cut), w * 0.85, h * 0.95), ink, _scaled(ink, 0.6), 2)
    if base != CARDBOARD:
        picture, (x, y) = _pick(rng, INKS), rng.uniform((0.1, 0.45), (0.4, 0.6)) * (w, h)
        draw.rectangle((x, y, x + w * 0.45, y + h * 0.3), picture)
        draw.ellipse((x + w * 0.1, y + h * 0.05, x + w * 0.35, y + h * 0.25), _scaled(picture, 1.5))
    contrast = WHITE if sum(base) < 330 else _scaled(ink, 0.6)
    words = title.split()[:2]
    size = max(4, int(min(h * 0.18, 1.5 * w / max(map(len, words)))))
    bold = int(rng.integers(0, 2))
    draw.text((w * 0.06, h * 0.06), "\n".join(words), contrast, _font(size), stroke_width=bold, spacing=1)
    for y in h * 0.06 + 2.5 * size + np.arange(rng.integers(2, 7)) * max(4, h * 0.035):
        draw.line((w * 0.07, y, w * rng.uniform(0.4, 0.9), y), contrast, max(1, h // 90))
    return face


def _spine(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """The rounded spine of an upright book, its title running down."""
    face = Image.new("RGB", (h, w), base)
    draw = ImageDraw.Draw(face)
    for x in rng.uniform(0.03, 0.95, rng.integers(1, 4)):
        draw.rectangle((x * h, 0, (x + rng.uniform(0.01, 0.08)) * h, w), ink)
    size = max(4, int(min(w * 0.6, 1.5 * h / len(title))))
    draw.text((h * 0.12, w / 2), title, WHITE if sum(base) < 380 else BLACK, _font(size), "lm")
    face = _lit(face, np.array([[0.6], [1.0], [1.12], [1.0], [0.55]]))
    return face.transpose(Image.Transpose.ROTATE_270).convert("RGBA")


def _bottle(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """A bottle, jar or tin: round, so bright along one line and dark at both sides."""
    neck, cap = rng.uniform(0.25, 0.95), rng.uniform(0.08, 0.16)
    face = Image.new("RGB", (w, h), base)
    face.paste(_print(rng, title, w, h // 2 + 1, _pick(rng, (WHITE, ink)), base), (0, int(h * 0.36)))
    ImageDraw.Draw(face).rectangle((0, 0, w, h * cap), _pick(rng, (WHITE, BLACK, ink)))
    face = _lit(face, np.array([[0.35, 0.8, 1.25, 1.0, 0.75, 0.35]]))
    mask = Image.new("L", (w, h))
    draw = ImageDraw.Draw(mask)
    draw.rounded_rectangle((w * (1 - neck) / 2, 0, w * (1 + neck) / 2, h * 0.35), w * 0.04, 255)
    draw.rounded_rectangle((0, h * (cap + 0.1 * (1 - neck)), w - 1, h - 1), w * 0.16, 255)
    face.putalpha(mask)
    return face


def _bag(rng: Rng, title: str, w: int, h: int, base: Colour, ink: Colour) -> Image.Image:
    """Something soft in clear plastic: no straight edge, folds, many small highlights."""
    face = _lit(_print(rng, title, w, h, base, ink), rng.uniform(0.45, 1.25, (5, 6)))
    face = _wrapped(rng, face, 1.0)
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    reach = 1 + rng.normal(0, 0.045, 28)
    across, down = (np.clip(np.sign(v) * abs(v) ** 0.55 * reach, -1, 1) for v in (np.cos(turn), np.sin(turn)))
    mask = Image.new("L", (w, h))
    ImageDraw.Draw(mask).polygon(_points(w / 2 * (1 + across), h / 2 * (1 + down)), fill=255)
    face.putalpha(mask)
    return face


def _wrapped(rng: Rng, face: Image.Image, strength: float) -> Image.Image:
    """Lay crumpled clear plastic over `face`: it shines where its facets slope towards the light."""
    glare = np.full((face.height, face.width), 0.07)
    for cells in (6, 12, 22):
        crumple = _enlarged(rng.normal(0, 1, (cells, cells)), face.size)
        down, across = np.gradient(crumple)
        slope = down * face.height + across * face.width * rng.normal()
        glare += 0.45 * np.exp(-np.square(slope / cells - 1.5) * 12)
    glare *= np.clip(_enlarged(rng.normal(0.5, 0.5, (4, 4)), face.size), 0.1, 1) * strength
    mask = Image.fromarray((np.clip(glare, 0, 0.8) * 255).astype(np.uint8))
    return Image.composite(Image.new("RGB", face.size, WHITE), face, mask)


# --- bands, lens, sensor -------------------------------------------------------------------------------


def _bands(canvas: Image.Image, photo: Photo) -> Image.Image:
    """Stretch clear elastic bands of many fine strands across the opening; they soften what is behind."""
    rng = np.random.default_rng([photo.bin, 4])
    shot = np.random.default_rng([photo.shot, 4])
    left, top, right, bottom = photo.opening
    h = photo.height
    pixels = np.array(canvas, np.float32)
    x = np.linspace(0, 1, right - left, dtype=np.float32)
    count = int(rng.integers(1, 4))
    for k in range(count):
        strands, pitch = int(rng.integers(6, 18)), rng.uniform(0.011, 0.017) * h + 0.8
        middle = top + (bottom - top) * ((k + 0.5) / count + rng.uniform(-0.12, 0.12)) + shot.normal(0, 2)
        sag = (rng.uniform(-0.08, 0.12) * x * (1 - x) + rng.normal(0, 0.015) * x) * h
        sag += np.sin(x * rng.uniform(6, 20) + shot.uniform(0, 6)) * rng.uniform(0.2, 1.5)
        reach = pitch * strands / 2
        first, last = max(top, int(middle - reach - 20)), min(bottom, int(middle + reach + 20))
        strand = (np.arange(first, last, dtype=np.float32)[:, None] - middle + reach - sag) / pitch
        which = np.clip(strand, 0, strands - 1).astype(np.intp)
        inside = (strand > 0) & (strand < strands)
        width, tint = rng.uniform(0.3, 0.7, strands)[which], rng.normal(0, 9, strands)[which]
        ridge = np.clip(1.6 - np.abs(strand - which - 0.5) / width * 3, 0, 1)
        cover = inside * (rng.uniform(0.04, 0.15) + ridge * rng.uniform(0.16, 0.34))
        tone = rng.uniform(165, 215)
        window = pixels[first:last, left:right]
        behind = canvas.crop((left, first, right, last)).filter(ImageFilter.BoxBlur((1, 2)))
        window += (0.4 * inside)[..., None] * (np.asarray(behind) - window)
        for c, colour in enumerate((tone + 6 + tint, tone - 2, tone - 12 - tint)):
            window[..., c] += cover * (colour - window[..., c])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _expose(canvas: Image.Image, photo: Photo) -> Image.Image:
    """A soft lens, uneven warm light, low contrast, and the sensor's noise."""
    shot = np.random.default_rng([photo.shot, 5])
    canvas = canvas.filter(ImageFilter.BoxBlur(shot.uniform(0.4, 0.9) * photo.width / 450))
    if photo.blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(photo.blur))
    light = _enlarged(shot.uniform(0.84, 1.1, (3, 3)) * shot.uniform(0.82, 1.02), canvas.size)
    noise = shot.standard_normal(light.shape, np.float32) * np.float32(shot.uniform(1.5, 4.0))
    pixels = np.array(canvas, np.float32)
    for c, (gain, floor) in enumerate(((0.73, 40), (0.70, 33), (0.65, 27))):
        pixels[..., c] = pixels[..., c] * (light * np.float32(gain)) + (noise + floor)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# --- small tools ---------------------------------------------------------------------------------------


def _lit(image: Image.Image, light: NDArray[np.float64]) -> Image.Image:
    """Multiply an RGB image by a coarse map of the light on it."""
    field = _enlarged(light, image.size)[..., None]
    return Image.fromarray(np.clip(np.asarray(image) * field, 0, 255).astype(np.uint8))


def _enlarged(coarse: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate a coarse map to `size` = (width, height); the result is (height, width)."""
    return np.asarray(Image.fromarray(coarse.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _pick(rng: Rng, colours: tuple[Colour, ...]) -> Colour:
    return _scaled(np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.1, 3), 1.0)


def _scaled(colour: Colour | NDArray[np.generic], gain: float) -> Colour:
    r, g, b = (min(255, int(float(c) * gain)) for c in colour)
    return r, g, b


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # comes with Pillow, so no font of the system is needed
