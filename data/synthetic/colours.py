"""Colours of skin, hair, eyes, lips and things, as RGB."""

from collections.abc import Sequence

from manyfaces.data.synthetic.traits import Values

Colour = tuple[int, int, int]

SKINS = ((255, 226, 205), (240, 196, 164), (214, 160, 120), (168, 114, 80), (104, 68, 50))
HAIRS = (
    (28, 24, 26),
    (66, 42, 30),
    (118, 72, 40),
    (160, 62, 34),
    (216, 112, 44),
    (230, 188, 104),
    (238, 226, 200),
    (110, 126, 144),
)
IRISES = ((52, 32, 22), (108, 66, 32), (70, 120, 70), (60, 110, 180), (120, 140, 150), (30, 24, 24))
LIPS = ((196, 96, 96), (168, 76, 84), (204, 40, 60), (140, 60, 70), (220, 128, 120), (120, 50, 90))
FRAMES = (
    (24, 24, 28),
    (120, 60, 30),
    (190, 30, 40),
    (40, 70, 160),
    (200, 190, 160),
    (230, 230, 235),
)


def mix(a: Colour, b: Colour, weight: float) -> Colour:
    """Mix two colours: `a` at weight 0, `b` at 1."""
    return (
        int(a[0] + (b[0] - a[0]) * weight),
        int(a[1] + (b[1] - a[1]) * weight),
        int(a[2] + (b[2] - a[2]) * weight),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """Make a colour darker (factor below 1) or lighter."""
    return (
        min(255, int(colour[0] * factor)),
        min(255, int(colour[1] * factor)),
        min(255, int(colour[2] * factor)),
    )


def pick(colours: Sequence[Colour], u: float) -> Colour:
    """Choose a colour of the palette, or between neighbours, by a number in [0, 1)."""
    place = u * (len(colours) - 1)
    return mix(colours[int(place)], colours[int(place) + 1], place - int(place))


def paint(u: Sequence[float]) -> Colour:
    """Make any colour, of cloth or walls, of three numbers in [0, 1)."""
    return (int(20 + u[0] * 220), int(20 + u[1] * 220), int(20 + u[2] * 220))


def skin_of(face: Values) -> Colour:
    """The colour of the face's skin."""
    red, green, blue = pick(SKINS, face["skin"]["tone"])
    hue = int(face["skin"]["hue"])
    return (red, min(255, green + hue // 3), max(0, min(255, blue - hue)))


def hair_of(face: Values) -> Colour:
    """The colour of the face's hair."""
    return shade(pick(HAIRS, face["hair"]["colour"]), face["hair"]["shade"])
