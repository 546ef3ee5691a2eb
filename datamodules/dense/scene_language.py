"""What can be said of a scene of shapes: captions, questions and their answers, in a small closed vocabulary."""

import random
from collections import Counter
from itertools import combinations, permutations

import numpy as np

from datamodules.dense.scenes import CLASSES, NAMES, REFERENCE, THINGS, Canvas, Scene, Shape, below, inside_of
from datamodules.loaders import mix

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
# every answer of questions(), and every word of captions() and questions(); they come in lower case without punctuation
ANSWERS = (*NUMBERS, "yes", "no", *NAMES, *CLASSES)
WORDS = (
    *ANSWERS,
    *(f"{CLASSES[kind]}s" for kind in THINGS),
    *"a above an and are behind below color crowd front how in is larger left many more of on right scene".split(),
    *"shape shapes than the there what where".split(),
)


def captions(scene: Scene) -> list[str]:
    """Return five different sentences that are true of the scene, in the words of ``WORDS``; the same ones at every call.

    They name the shapes, count them and say where they are: beside, in front of or on what. Numbers are exact and leave crowds
    and the void region out; a class of which there is a crowd is not counted. Places are those of the centres, hidden or not.
    """
    draw = random.Random(mix(*scene.key, "captions"))
    groups = [sorted(group, key=lambda _: draw.random()) for group in _Facts(scene).sentences()]
    groups.sort(key=lambda _: draw.random())
    # one of each sort, then a second one of each
    rounds = (group[turn] for turn in range(5) for group in groups if turn < len(group))
    return [sentence for _, sentence in zip(range(5), dict.fromkeys(rounds))]


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Return all questions that have one clear answer in ``ANSWERS``, each with its answer; the same ones at every call.

    Numbers, existence, colours, classes, what is beside what, what is on what, what is in front or larger. Answers hold for the
    shapes that are seen; nothing is asked that a crowd or the void region would make doubtful.
    """
    facts, draw = _Facts(scene), random.Random(mix(*scene.key, "questions"))
    pairs = [(f"how many {CLASSES[kind]}s are there", NUMBERS[facts.kinds[kind]]) for kind in facts.countable]
    if facts.crowd is None:
        pairs.append(("how many shapes are there", NUMBERS[len(facts.shapes)]))
    pairs += facts.of_colors()
    present = sorted(facts.names)
    # as many "no" as "yes", and of colours and classes that are there, only not together, when there are any such
    absent = sorted({f"{NAMES[color]} {CLASSES[kind]}" for color in facts.colors for kind in facts.kinds} - facts.all_names)
    absent = absent or sorted({f"{color} {CLASSES[kind]}" for color in NAMES for kind in THINGS} - facts.all_names)
    pairs.append((f"is there {_article(present[int(draw.random() * len(present))])}", "yes"))
    pairs.append((f"is there {_article(absent[int(draw.random() * len(absent))])}", "no"))
    for two in combinations(facts.countable, 2):
        one, other = two if draw.random() < 0.5 else two[::-1]
        if facts.kinds[one] != facts.kinds[other]:
            more = "yes" if facts.kinds[one] > facts.kinds[other] else "no"
            pairs.append((f"are there more {CLASSES[one]}s than {CLASSES[other]}s", more))
    return pairs + facts.of_places()


_RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_APART = 0.1  # how far two centres must be apart to be beside each other
_ON = {"sky": "in", "grass": "on", "water": "in", "sand": "on"}


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _related(one: Shape, other: Shape, way: tuple[int, int]) -> bool:
    """Whether ``one`` is clearly and mainly this way from ``other``."""
    dx, dy = one.x - other.x, one.y - other.y
    along, across = (dx * way[0], abs(dy)) if way[0] else (dy * way[1], abs(dx))
    return along >= _APART and along >= across


class _Facts:
    """What can be said of a scene, judged at the size at which its shapes' visibility was.

    Attributes:
        shapes: the things, nearest first, without the crowd.
        crowd: the crowd or None.
        kinds, colors, names: how many things there are of each class, colour, and both.
        all_names: the names that occur, of things or the crowd.
        countable: classes whose number is clear.
        single: the things that their name tells from all others, and from the crowd.
    """

    def __init__(self, scene: Scene):
        self.scene, self.canvas = scene, Canvas(scene, REFERENCE)
        self.shapes = [shape for shape in scene.shapes if not shape.crowd]
        self.crowd = next((shape for shape in scene.shapes if shape.crowd), None)
        self.kinds = Counter(shape.kind for shape in self.shapes)
        self.colors = Counter(shape.color for shape in self.shapes)
        self.names = Counter(shape.name for shape in self.shapes)
        self.all_names = set(self.names) | ({self.crowd.name} if self.crowd else set())
        self.countable = [kind for kind in THINGS if self.crowd is None or kind != self.crowd.kind]
        doubtful = self.crowd.name if self.crowd else ""
        self.single = [shape for shape in self.shapes if self.names[shape.name] == 1 and shape.name != doubtful]

    def under(self, shape: Shape) -> str | None:
        """The stuff at a thing's centre, when it is the same above and below."""
        bands = set()
        for y in (shape.y - 0.6 * shape.radius, shape.y, shape.y + 0.6 * shape.radius):
            for x in (shape.x - 0.6 * shape.radius, shape.x + 0.6 * shape.radius):
                bands.add([band.category for band in self.scene.bands if below((band.offset, band.slope), x, y) > 0][-1])
        return CLASSES[bands.pop()] if len(bands) == 1 else None

    def covers(self, front: Shape, back: Shape) -> bool:
        """Whether some of ``back`` is hidden by what is seen of ``front``."""
        shapes = self.scene.shapes
        if shapes.index(front) >= shapes.index(back):
            return False
        seen = self.canvas.numbers == shapes.index(front) + 1
        return bool(np.count_nonzero(seen & inside_of(back)) >= 4)

    def larger(self, one: Shape, other: Shape) -> bool:
        """Whether ``one`` is clearly larger, and what is seen of it too."""
        seen = np.bincount(self.canvas.numbers.ravel(), minlength=len(self.scene.shapes) + 1)[1:]
        index = self.scene.shapes.index
        return bool(one.radius >= 1.25 * other.radius and seen[index(one)] > seen[index(other)])

    def sentences(self) -> list[list[str]]:
        """True sentences of several sorts; at least five sorts are not empty."""
        listed = [_article(name) if number == 1 else f"{NUMBERS[number]} {name}s" for name, number in self.names.items()]
        crowd = [f"a crowd of {self.crowd.name}s"] if self.crowd else []
        total = [f"{NUMBERS[len(self.shapes)]} shapes", *([f"a crowd of {CLASSES[self.crowd.kind]}s"] if self.crowd else [])]
        stuff = [CLASSES[kind] for kind in self.canvas.category[np.count_nonzero(self.canvas.seen[: len(self.scene.shapes)]) :]]
        present = [(CLASSES[kind], self.kinds[kind]) for kind in self.countable if self.kinds[kind]]
        counts = [f"there is one {name}" if number == 1 else f"there are {NUMBERS[number]} {name}s" for name, number in present]
        absent = [f"there is no {CLASSES[kind]}" for kind in self.countable if not self.kinds[kind]]
        places = [(shape, self.under(shape)) for shape in self.shapes]
        named = [(_article(one.name), _article(other.name), one, other) for one, other in permutations(self.shapes, 2)]
        ways = [(word, way, *pair) for word, way in _RELATIONS.items() for pair in named]
        beside = [f"{a} {word} {b}" for word, way, a, b, one, other in ways if _related(one, other, way)]
        fronts = [f"{a} in front of {b}" for a, b, one, other in named if self.covers(one, other)]
        behind = [f"{a} behind {b}" for a, b, one, other in named if self.covers(other, one)]
        return [
            [" and ".join(listed + crowd)],
            ["there are " + " and ".join(total)],
            ["a scene of " + " and ".join(stuff)],
            [f"there is {_article(name)}" for name in self.names],
            [f"there is {name}" for name in crowd],
            counts,
            absent,
            [f"{_article(shape.name)} {_ON[stuff]} the {stuff}" for shape, stuff in places if stuff],
            beside,
            fronts + behind,
            [f"{a} larger than {b}" for a, b, one, other in named if self.larger(one, other)],
        ]

    def of_colors(self) -> list[tuple[str, str]]:
        """Questions that name a colour or ask for one."""
        pairs = []
        for color, number in self.colors.items():
            if self.crowd is None or color != self.crowd.color:
                pairs.append((f"how many {NAMES[color]} shapes are there", NUMBERS[number]))
                if number == 1:
                    kind = next(shape.kind for shape in self.shapes if shape.color == color)
                    pairs.append((f"what shape is {NAMES[color]}", CLASSES[kind]))
        for shape in self.shapes:
            if self.kinds[shape.kind] == 1 and shape.kind in self.countable:
                pairs.append((f"what color is the {CLASSES[shape.kind]}", NAMES[shape.color]))
        return pairs

    def of_places(self) -> list[tuple[str, str]]:
        """Questions about things that their name tells from all others."""
        pairs = []
        for shape in self.single:
            stuff = self.under(shape)
            if stuff:
                pairs.append((f"where is the {shape.name}", stuff))
            for word, way in _RELATIONS.items():
                there = [one for one in self.scene.shapes if (one.x - shape.x) * way[0] + (one.y - shape.y) * way[1] > 0]
                # one answer only: no other thing, not even a little that way, and no crowd
                if len(there) == 1 and not there[0].crowd and _related(there[0], shape, way):
                    pairs.append((f"what shape is {word} the {shape.name}", CLASSES[there[0].kind]))
            for other in self.single:
                if self.covers(shape, other) or self.covers(other, shape):
                    front = "yes" if self.covers(shape, other) else "no"
                    pairs.append((f"is the {shape.name} in front of the {other.name}", front))
                if self.larger(shape, other) or self.larger(other, shape):
                    larger = "yes" if self.larger(shape, other) else "no"
                    pairs.append((f"is the {shape.name} larger than the {other.name}", larger))
        return pairs
