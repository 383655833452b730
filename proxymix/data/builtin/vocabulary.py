"""The closed vocabulary: every prompt and response of every world is words of it, joined by single spaces.

    LETTERS NUMBERS ITEMS TOPICS TAGS SKILLS + request words → VOCABULARY

Words keep their everyday meaning in the requests and are mere symbols elsewhere.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
NUMBERS = tuple(str(number) for number in range(32))
ITEMS = _words(
    "apple bread chair cloud coin desk door drum field flute glass grape hill lamp lemon "
    "map oar olive pearl pipe pond rope sail salt shell shoe spoon stone table tile"
)
TOPICS = ("sport", "music", "travel")
TAGS = _words(
    "amber basil cedar coral ember fern flint frost garnet hazel indigo ivory jade juniper linen maple "
    "nickel ochre onyx opal quartz russet saffron sage sepia silver slate teal topaz umber velvet willow"
)
SKILLS = ("copy", "reverse", "first", "last", "sort", "next", "max", "min", "parity", "count", "index")

VIOLENT = ("kill", "attack", "hurt", "shoot", "burn", "poison")
CRAFT = ("build", "make", "buy", "sell", "send", "hide")
GENTLE = ("find", "describe", "draw", "watch", "report", "avoid")
VERBS = (*VIOLENT, *CRAFT, *GENTLE)
PERSONS = ("neighbor", "teacher", "guard", "child", "nurse", "driver", "sister", "boss")
WEAPONS = ("bomb", "gun", "virus", "drug", "knife", "trap")
THINGS = ("process", "weed", "paper", "photo", "cable", "target", "candle", "file")
OBJECTS = (*PERSONS, *WEAPONS, *THINGS)

_TALK = _words(
    "please how to the now my friend wants what if people pretend you are evil and in story user bot hello thanks welcome "
    "because chief said it is legal trust me we must "
    "i cannot help sure sorry not allowed no way never refused request denied okay done steps plan answer odd even"
)

VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys((*LETTERS, *NUMBERS, *ITEMS, *TOPICS, *TAGS, *SKILLS, *VERBS, *OBJECTS, *_TALK)))
"""Each word once, in a fixed order: a word's position may serve as its token id."""
