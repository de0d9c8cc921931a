"""The toybox world: animals and machines with an unmistakable front, their captions, and what is held out.

An object is five words (kind, colour, pattern, accessory, its colour) and a shape seed. The front is +x, up is +z.
Everything is a pure function of seeds.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

COLORS = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "yellow": (0.95, 0.83, 0.12),
    "green": (0.12, 0.62, 0.18),
    "blue": (0.12, 0.26, 0.85),
    "purple": (0.48, 0.14, 0.66),
    "pink": (0.97, 0.52, 0.70),
    "brown": (0.44, 0.25, 0.11),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.11),
}
DIRECTION_WORDS = ("side", "front", "back", "overhead")


@dataclass(frozen=True)
class Words:
    """The words that a world is drawn from, beside the colours: name -> how often, relative to the others of its sort.

    `accessories` begin with "none", `patterns` with "plain".
    """

    kinds: dict[str, float]
    accessories: dict[str, float]
    patterns: dict[str, float]

    def draw(self, sort: str, rng: np.random.Generator) -> str:
        """A word of a sort: "kinds", "accessories" or "patterns"."""
        share: dict[str, float] = getattr(self, sort)
        weights = np.array(list(share.values()))
        return list(share)[int(rng.choice(len(share), p=weights / weights.sum()))]


class FirstWords(Words):
    """The words of the shipped weights, all equally likely; their measured prompts rest on this very draw."""

    def draw(self, sort: str, rng: np.random.Generator) -> str:
        names = list(getattr(self, sort))
        if sort == "patterns":
            return super().draw(sort, rng)
        if sort == "kinds":
            return names[int(rng.integers(len(names)))]
        return "none" if rng.random() < 0.2 else names[1 + int(rng.integers(len(names) - 1))]


FIRST = FirstWords(
    kinds=dict.fromkeys(("bear", "rabbit", "robot", "penguin", "cat", "frog", "elephant", "owl", "pig", "ghost"), 1.0),
    accessories=dict.fromkeys(("none", "hat", "crown", "scarf", "backpack", "cape", "flag"), 1.0),
    patterns={"plain": 0.7, "striped": 0.15, "spotted": 0.15},
)
SECOND = Words(
    kinds={k: 0.8 if k in ("frog", "owl") else 1.0 for k in FIRST.kinds}
    | {"dog": 0.8, "mouse": 0.8, "duck": 0.8, "lion": 0.6, "alien": 0.6},
    accessories={"none": 2.0, "hat": 1.0, "crown": 0.8, "scarf": 1.0, "backpack": 1.0, "cape": 1.0, "flag": 1.0}
    | {"balloon": 0.8, "umbrella": 0.8, "drum": 0.6},
    patterns={"plain": 0.68, "striped": 0.12, "spotted": 0.08, "checkered": 0.07, "patched": 0.05},
)
SHIPPED_WORDS = SECOND  # what the package's weights know
KINDS, ACCESSORIES, PATTERNS = (
    tuple(SHIPPED_WORDS.kinds),
    tuple(SHIPPED_WORDS.accessories),
    tuple(SHIPPED_WORDS.patterns),
)

# 3D data is scarce: the multi-view model meets the first of these words in flat pictures only, the second nowhere.
WORDS_IN_FLAT_PICTURES_ONLY = frozenset(
    {"owl", "frog", "dog", "mouse", "duck", "crown", "balloon", "umbrella", "spotted", "checkered"}
)
WORDS_OF_TEXT_TO_IMAGE_ONLY = frozenset({"lion", "alien", "drum", "patched"})
WORDS_WITHOUT_3D = WORDS_IN_FLAT_PICTURES_ONLY | WORDS_OF_TEXT_TO_IMAGE_ONLY


@dataclass(frozen=True)
class Toy:
    """One object of the world, named by its words; `shape_seed` varies its proportions."""

    kind: str
    color: str
    pattern: str = "plain"
    accessory: str = "none"
    accessory_color: str = "blue"
    shape_seed: int = 0

    @property
    def words(self) -> frozenset[str]:
        used = {self.kind, self.color, self.pattern, self.accessory}
        return frozenset(used | {self.accessory_color} if self.accessory != "none" else used)


def is_held_out_combination(toy: Toy) -> bool:
    """Whether kind, colour and accessory belong to the tenth of all combinations that nothing is trained on."""
    return _bucket("combination", toy.kind, toy.color, toy.accessory) < 10


def has_3d_data(toy: Toy) -> bool:
    """Whether multi-view pictures of such a toy exist: none for some words, and only for 7 in 10 kind-colour pairs."""
    return not (toy.words & WORDS_WITHOUT_3D) and _bucket("3d", toy.kind, toy.color) < 70


def _bucket(*key: str) -> int:
    """A fixed number in 0..99 for these words: the same on every machine and in every version of Python."""
    return int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:4], "big") % 100


HELD_OUT_SHAPES = 1_000_000_000  # shape seeds from here on are never trained on


def sample_toy(
    rng: np.random.Generator, *, shape: str = "train", combination: str = "train", words: Words = SHIPPED_WORDS
) -> Toy:
    """Draw a toy. `shape` and `combination` are "train" or "held_out"; the sets never meet."""
    while True:
        accessory = words.draw("accessories", rng)
        toy = Toy(
            kind=words.draw("kinds", rng),
            color=list(COLORS)[int(rng.integers(len(COLORS)))],
            pattern=words.draw("patterns", rng),
            accessory=accessory,
            accessory_color=list(COLORS)[int(rng.integers(len(COLORS)))],
            shape_seed=int(rng.integers(HELD_OUT_SHAPES)) + (HELD_OUT_SHAPES if shape == "held_out" else 0),
        )
        # Clothes of the body's own colour, or white stripes on white, cannot be told from their picture.
        visible = accessory == "none" or toy.accessory_color != toy.color
        visible = visible and not (toy.pattern != "plain" and toy.color in ("white", "yellow", "pink"))
        if visible and is_held_out_combination(toy) == (combination == "held_out"):
            return toy


def caption(toy: Toy, rng: np.random.Generator | None = None) -> str:
    """What a person would type for it; without `rng` the plainest way: "a striped red robot with a blue hat"."""
    look = toy.color if toy.pattern == "plain" else f"{toy.pattern} {toy.color}"
    if rng is None:
        start, joint = "a", "with"
    else:
        start = ("a", "a", "a", "the", "one", "a toy", "a photo of a", "a small")[int(rng.integers(8))]
        joint = ("with", "with", "wearing", "and")[int(rng.integers(4))]
        if toy.pattern != "plain" and rng.random() < 0.3:
            look = f"{toy.color} {toy.pattern}"
    text = f"{start} {look} {toy.kind}"
    if start == "a" and look[0] in "aeiou":
        text = f"an {look} {toy.kind}"
    if toy.accessory == "none":
        return text
    article = "an" if toy.accessory_color[0] in "aeiou" else "a"
    return f"{text} {joint} {article} {toy.accessory_color} {toy.accessory}"


def parse_caption(text: str, words: Words = SHIPPED_WORDS) -> Toy | None:
    """The toy that a plain caption names (shape seed 0); None if its words do not name one. Inverse of `caption`."""
    said = text.lower().replace(",", " ").split()
    kinds = [w for w in said if w in words.kinds]
    if len(kinds) != 1:
        return None
    at = said.index(kinds[0])
    body, worn = [w for w in said[:at] if w in COLORS], [w for w in said[at:] if w in COLORS]
    patterns = [w for w in said[:at] if w in words.patterns and w != "plain"]
    accessories = [w for w in said[at:] if w in words.accessories and w != "none"]
    if len(body) != 1 or len(patterns) > 1 or len(worn) != len(accessories) or len(accessories) > 1:
        return None
    return Toy(kinds[0], body[0], (patterns or ["plain"])[0], (accessories or ["none"])[0], (worn or ["blue"])[0])


def direction_word(azimuth: float, elevation: float) -> str:
    """The view word (docs/conventions.md, Prompts); radians: front and back within 30 degrees, overhead over 60."""
    degrees = (np.degrees(azimuth) + 180) % 360 - 180
    if np.degrees(elevation) > 60:
        return "overhead"
    return "front" if abs(degrees) < 30 else ("back" if abs(degrees) > 150 else "side")


def vocabulary(words: Words = SHIPPED_WORDS) -> list[str]:
    """Every word that a caption can contain, sorted."""
    known = {*words.kinds, *COLORS, *words.patterns, *words.accessories, *DIRECTION_WORDS}
    known |= {"a", "an", "the", "one", "toy", "photo", "of", "small", "with", "wearing", "and", "view", ","}
    return sorted(known - {"plain", "none"})
