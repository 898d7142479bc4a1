"""The words of the diaries, by what they do in a sentence.

Good and bad lists of a slot have the same length and the same order of use: index i of one stands for index i of the
other in a matched pair of entries. No word is in two lists, so a word's role can be read from the word.
"""

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WOMEN = ("anna", "mary", "clara", "julia", "nora", "helen")
MEN = ("peter", "john", "david", "simon", "karl", "oscar")
NAMES = (*WOMEN, *MEN)

NOUNS = {
    "market": ("apple", "melon", "apples", "melons"),
    "park": ("tree", "pond", "trees", "ponds"),
    "museum": ("statue", "painting", "statues", "paintings"),
    "beach": ("wave", "shell", "waves", "shells"),
    "farm": ("horse", "cow", "horses", "cows"),
    "library": ("book", "shelf", "books", "shelves"),
    "harbour": ("boat", "crane", "boats", "cranes"),
    "garden": ("rose", "bench", "roses", "benches"),
}
"""What there is at each place: two things, and two of them in the plural."""
PLACES = tuple(NOUNS)
FOOD = ("bread", "cheese", "rice", "pasta", "beans", "eggs", "noodles", "salad")
WEATHER = ("windy", "cloudy", "dry", "humid", "misty", "mild")
THINGS = ("chair", "lamp", "clock", "bowl", "radio", "mirror", "table", "window")

EVENTS = {
    ("found", "a"): (("coin", "bargain"), ("rat", "leak")),
    ("heard", "a"): (("choir", "joke"), ("scream", "siren")),
    ("got", "a"): (("present", "medal"), ("fine", "headache")),
    ("saw", "a"): (("rainbow", "dolphin"), ("crash", "fight")),
    ("lost", "my"): (("cough", "debts"), ("wallet", "passport")),
    ("caught", "a"): (("trout", "salmon"), ("cold", "thief")),
    ("missed", "the"): (("storm", "queue"), ("train", "concert")),
    ("won", "the"): (("race", "lottery"), ("blame", "detention")),
}
"""Verbs that say nothing of the mood, with their article; the object decides: good ones, bad ones."""
DEEDS = (("mended", "repaired", "polished", "restored"), ("broke", "dropped", "scratched", "ruined"))
"""Verbs that decide the mood, whichever of `THINGS` the object is: good ones, bad ones."""

MOOD = {
    "adjective": (
        (
            *("lovely", "pretty", "charming", "splendid", "delightful", "superb", "pleasant", "gorgeous", "bright"),
            *(
                "fresh",
                "wonderful",
                "perfect",
                "excellent",
                "great",
                "fantastic",
                "brilliant",
                "marvellous",
                "glorious",
            ),
            *("beautiful", "magnificent", "heavenly", "radiant", "divine", "cheerful"),
        ),
        (
            *("ugly", "dirty", "horrid", "dreadful", "nasty", "hideous", "gloomy", "stale", "terrible", "awful"),
            *(
                "ghastly",
                "bad",
                "horrible",
                "disastrous",
                "wretched",
                "grim",
                "dismal",
                "vile",
                "bleak",
                "foul",
                "dull",
            ),
            *("rotten", "shabby", "miserable"),
        ),
    ),
    "comment": (
        ("luckily", "thankfully", "fortunately", "blissfully"),
        ("alas", "regrettably", "unfortunately", "miserably"),
    ),
}
"""The words that the mood chooses, by part of speech: good ones, bad ones."""

GOOD_WORDS = tuple(word for good, _ in MOOD.values() for word in good)
BAD_WORDS = tuple(word for _, bad in MOOD.values() for word in bad)

GRAMMAR = (
    *("on", "and", "i", "we", "went", "to", "the", "took", "me", "my", "a", "was", "were", "he", "she", "at", "said"),
    *("it", "felt", "had", "outside", "looked", "talked", "overall", "so", "."),
)


def vocabulary() -> tuple[str, ...]:
    """Return every word once, the grammar's first."""
    events = [word for (verb, _), sides in EVENTS.items() for word in (verb, *sides[0], *sides[1])]
    nouns = [word for there in NOUNS.values() for word in there]
    lists = (GRAMMAR, DAYS, NAMES, PLACES, nouns, FOOD, WEATHER, THINGS, events, *DEEDS, GOOD_WORDS, BAD_WORDS)
    return tuple(word for words in lists for word in words)
