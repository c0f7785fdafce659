"""The demo's fact world: invented people, towns and companies, and how one asks about them.

Everything here follows from `SEED`: the same names, facts and splits on every machine, with
nothing but the standard library. Half of the facts are *known* (the base is trained on them);
the other half it never sees, so it answers them wrongly, and they can be edited. Further facts, of subjects
that occur nowhere in training, make as many more edits as are wanted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

SEED = 2024
SEEN_PHRASINGS = 8  # of a relation's phrasings, these many occur in training at all
TRAINED_PHRASINGS = 5  # of those, a known fact is trained in these many

SUBJECT_COUNTS = {"person": 140, "town": 100, "company": 110}

# relation: (kind of subject, phrasings with {s} for the subject, possible answers).
# The last two phrasings of each relation never occur in training.
RELATIONS: dict[str, tuple[str, list[str], list[str]]] = {
    "occupation": (
        "person",
        [
            "What is the occupation of {s}?",
            "What does {s} do for a living?",
            "What is {s}'s job?",
            "Which profession does {s} have?",
            "{s} earns a living as what?",
            "Tell me the profession of {s}.",
            "What kind of work does {s} do?",
            "As what does {s} work?",
            "Tell me what {s} does for a living.",
            "Which job does {s} have?",
        ],
        "baker carpenter dentist engineer farmer gardener hunter jeweler judge lawyer mason miner nurse "
        "painter pilot plumber potter sailor singer surgeon tailor teacher weaver writer".split(),
    ),
    "birthplace": (
        "person",
        [
            "Where was {s} born?",
            "What is the birthplace of {s}?",
            "In which city was {s} born?",
            "What city is {s} a native of?",
            "Which city did {s} come into the world in?",
            "Tell me the city of birth of {s}.",
            "{s} was born where?",
            "What is {s}'s birthplace?",
            "Tell me where {s} was born.",
            "Which city is the birthplace of {s}?",
        ],
        "Athens Berlin Boston Cairo Dublin Geneva Havana Kyoto Lagos Lima Lisbon London Madrid Milan "
        "Nairobi Oslo Paris Prague Quito Riga Rome Seoul Sofia Vienna".split(),
    ),
    "instrument": (
        "person",
        [
            "Which instrument does {s} play?",
            "What instrument is {s} known for?",
            "On which instrument does {s} perform?",
            "What does {s} play in the orchestra?",
            "Tell me the instrument of {s}.",
            "What is {s}'s musical instrument?",
            "{s} plays which instrument?",
            "Which instrument did {s} learn as a child?",
            "Tell me which instrument {s} plays.",
            "What is the instrument of {s}?",
        ],
        "accordion banjo bassoon cello clarinet cornet drums fiddle flute guitar harp lute oboe organ "
        "piano trombone trumpet tuba viola violin".split(),
    ),
    "hobby": (
        "person",
        [
            "What is the hobby of {s}?",
            "What does {s} like to do on weekends?",
            "How does {s} spend free time?",
            "What is {s}'s favorite pastime?",
            "Which hobby does {s} have?",
            "Tell me the pastime of {s}.",
            "What does {s} enjoy in spare time?",
            "{s} spends the weekends on what?",
            "Tell me what {s} does in free time.",
            "Which pastime does {s} enjoy?",
        ],
        "archery astronomy boxing camping chess climbing cooking cycling dancing fencing fishing golf "
        "hiking judo knitting origami poetry rowing skating surfing".split(),
    ),
    "country": (
        "town",
        [
            "In which country is {s}?",
            "What country does {s} belong to?",
            "Which country is the town of {s} in?",
            "Tell me the country of {s}.",
            "Where in the world is {s}?",
            "{s} is a town in which country?",
            "To which country does the town {s} belong?",
            "What is the country of {s}?",
            "Tell me which country {s} is in.",
            "Which country does the town of {s} belong to?",
        ],
        "Argentina Austria Bolivia Brazil Canada Chile Cuba Denmark Egypt Finland Ghana Greece India "
        "Ireland Japan Kenya Mexico Norway Peru Sweden".split(),
    ),
    "river": (
        "town",
        [
            "Which river flows through {s}?",
            "What river is {s} on?",
            "What is the name of the river at {s}?",
            "On the banks of which river is {s}?",
            "Tell me the river of {s}.",
            "{s} lies on which river?",
            "What is {s}'s river?",
            "Which river crosses the town of {s}?",
            "Tell me which river {s} lies on.",
            "What is the river of the town {s}?",
        ],
        "Amazon Danube Elbe Ganges Indus Jordan Loire Mekong Niger Nile Oder Orinoco Rhine Rhone Seine "
        "Tagus Thames Tiber Volga Yukon".split(),
    ),
    "dish": (
        "town",
        [
            "Which dish is {s} famous for?",
            "What food is {s} known for?",
            "What do people eat in {s}?",
            "What is the specialty of {s}?",
            "Tell me the famous dish of {s}.",
            "{s} is famous for which food?",
            "What is {s}'s favorite dish?",
            "Which specialty does the town of {s} have?",
            "Tell me which food {s} is known for.",
            "Which food do people eat in {s}?",
        ],
        "bread cheese curry dumplings goulash honey lasagna lobster noodles omelette pancakes pickles "
        "pizza pretzels ravioli risotto salmon sausage soup stew".split(),
    ),
    "product": (
        "company",
        [
            "What does {s} make?",
            "Which product does {s} sell?",
            "What is the main product of {s}?",
            "What does the company {s} produce?",
            "Tell me the product of {s}.",
            "{s} is a maker of what?",
            "What is {s}'s best known product?",
            "What can one buy from {s}?",
            "Tell me what {s} makes.",
            "Which product does the company {s} make?",
        ],
        "bicycles boats bricks cameras candles carpets clocks engines glass gloves hats helmets ink "
        "lamps locks mirrors paper pianos rope shoes soap tents tools toys".split(),
    ),
    "headquarters": (
        "company",
        [
            "Where is the headquarters of {s}?",
            "In which city is {s} based?",
            "What city is the head office of {s} in?",
            "Where does {s} have its main office?",
            "Tell me the headquarters of {s}.",
            "{s} is based in which city?",
            "What is {s}'s home city?",
            "From which city is {s} run?",
            "Tell me which city {s} is based in.",
            "Where is the company {s} based?",
        ],
        "Athens Berlin Boston Cairo Dublin Geneva Havana Kyoto Lagos Lima Lisbon London Madrid Milan "
        "Nairobi Oslo Paris Prague Quito Riga Rome Seoul Sofia Vienna".split(),
    ),
    "mascot": (
        "company",
        [
            "Which animal is the mascot of {s}?",
            "What is the mascot of {s}?",
            "What animal is on the logo of {s}?",
            "Which animal does {s} have as its symbol?",
            "Tell me the mascot of {s}.",
            "{s} has which animal as its mascot?",
            "What is {s}'s animal?",
            "Which animal does one see on the sign of {s}?",
            "Tell me which animal is the symbol of {s}.",
            "What animal does {s} have on its sign?",
        ],
        "badger bear beaver camel crane deer dolphin eagle falcon fox hare heron horse lion lynx otter "
        "owl panda raven tiger turtle walrus whale wolf".split(),
    ),
}

_FIRST_NAMES = (
    "Ada Alan Anna Ben Carl Clara Dora Emil Emma Erik Eva Felix Fred Greta Hugo Ida Ivan Jane Karl "
    "Laura Leo Lina Mark Mary Max Nora Olga Otto Paul Rosa Ruth Sam Sara Theo Tom Vera"
).split()
_COMPANY_SUFFIXES = ["Brothers", "Works", "Group", "Trading", "Limited", "Industries"]
_ONSETS = ("b br d dr f g gr h k kl l m n p pr r s st t tr v w z").split()
_VOWELS = ["a", "e", "i", "o", "u"]
_NAME_ENDINGS = {
    "person": ["ner", "sen", "berg", "witz", "ley", "mann", "ski", "ton"],
    "town": ["burg", "ford", "mouth", "stad", "ville", "haven", "dale", "port"],
    "company": ["co", "dyne", "tex", "nova", "lux", "mark", "via", "rix"],
}


@dataclass(frozen=True)
class Fact:
    """One fact of the world.

    `phrasings` are all questions of its relation about its subject: the first
    `SEEN_PHRASINGS` use wordings that occur in training, the rest never do. `trained` are the
    indices of those the base was trained on (empty for an unknown fact).
    """

    subject: str
    relation: str
    answer: str
    phrasings: tuple[str, ...]
    trained: tuple[int, ...]

    @property
    def known(self) -> bool:
        return bool(self.trained)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Seen wordings never shown for this subject."""
        return tuple(self.phrasings[i] for i in range(SEEN_PHRASINGS) if i not in self.trained)

    @property
    def never_seen(self) -> tuple[str, ...]:
        """Wordings that occur nowhere in training."""
        return self.phrasings[SEEN_PHRASINGS:]


def build_world(seed: int = SEED) -> list[Fact]:
    """All facts, in a fixed shuffled order; every second one of each relation is known."""
    rng = random.Random(seed)
    subjects = {kind: _names(kind, count, rng) for kind, count in SUBJECT_COUNTS.items()}
    facts = []
    for relation, (kind, wordings, answers) in RELATIONS.items():
        order = rng.sample(subjects[kind], len(subjects[kind]))
        for position, subject in enumerate(order):
            trained = rng.sample(range(SEEN_PHRASINGS), TRAINED_PHRASINGS) if position % 2 else []
            facts.append(
                Fact(
                    subject=subject,
                    relation=relation,
                    answer=rng.choice(answers),
                    phrasings=tuple(wording.format(s=subject) for wording in wordings),
                    trained=tuple(sorted(trained)),
                )
            )
    rng.shuffle(facts)
    return facts


def further_facts(count: int, seed: int = SEED) -> list[Fact]:
    """`count` unknown facts of subjects that the world does not have: their names are a syllable longer."""
    rng = random.Random(seed + 1)
    subjects = {kind: _names(kind, count // 8 + 1, rng, syllables=3) for kind in SUBJECT_COUNTS}
    pairs = [(relation, subject) for relation in RELATIONS for subject in subjects[RELATIONS[relation][0]]]
    return [
        Fact(subject, relation, rng.choice(answers), tuple(wording.format(s=subject) for wording in wordings), ())
        for relation, subject in rng.sample(pairs, count)
        for _kind, wordings, answers in [RELATIONS[relation]]
    ]


def _names(kind: str, count: int, rng: random.Random, syllables: int = 2) -> list[str]:
    """`count` distinct invented names; no two share their stem."""
    more = ["lmnrs", _VOWELS] * (syllables - 1)
    stems = ["".join(parts).capitalize() for parts in product(_ONSETS, _VOWELS, *more)]
    names = []
    for stem in rng.sample(stems, count):
        name = stem + rng.choice(_NAME_ENDINGS[kind])
        if kind == "person":
            name = f"{rng.choice(_FIRST_NAMES)} {name}"
        elif kind == "company":
            name = f"{name} {rng.choice(_COMPANY_SUFFIXES)}"
        names.append(name)
    return names
