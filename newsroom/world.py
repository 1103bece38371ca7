"""Generates articles of an invented news world. Their facts are known, so a judge's answers can be checked.

An article has some facts, some filler sentences and a few distractors (a person, a city or a number that answers no
question), in random order. A fact is a *cue* followed by its *value*: "effort was led by | Elena Santos". The value
always comes after its cue, because tiny models learn to look up what follows a text, not what precedes it (see
README.md). Questions and summaries are in `tasks.py`.
"""

import random
import re
from dataclasses import dataclass

# First and last names are unique, so that either name identifies the person.
PEOPLE = tuple(
    f"{first} {last}"
    for first, last in zip(
        "Ana Boris Carla David Elena Farid Grace Hugo Irene Jonas Karim Lena Marco Nadia Omar Petra Quinn Rosa Samir "
        "Tara Ugo Viktor Wendy Xavier Yusuf Zoe".split(),
        "Novak Tanaka Costa Okafor Santos Weber Lopez Becker Petrov Khan Moreau Jensen Rossi Vargas Hansen Dubois "
        "Ivanov Yilmaz Eriksen Zhang Garcia Fischer Ueda Quiroga Alvarez Xu".split(),
        strict=True,
    )
)
CITIES = tuple(
    "Athens Austin Boston Cairo Denver Dublin Geneva Hanoi Lima Lisbon Madrid Nairobi Oslo Prague Quito Seoul Sydney "
    "Toronto Vienna Warsaw Zagreb".split()
)
COMPANIES = tuple(
    "Argent Bluepeak Clearwater Dunmore Eastgate Falcon Granite Harbor Ironwood Juniper Kestrel Lakeside Meridian "
    "Northwind Orchid Redstone Solara Starling Summit Westfield".split()
)
JOBS = tuple(
    "baker banker barber carpenter chemist coach dentist farmer lawyer mayor nurse painter pilot sailor surgeon "
    "teacher writer".split()
)
MONTHS = tuple("January February March April May June July August September October November December".split())
PLACES = tuple(
    "airport bridge castle cinema factory harbor hospital hotel library market museum prison school stadium station "
    "theater tunnel".split()
)
CAUSES = tuple(
    "arson blackouts corrosion debt drought fire flooding fraud frost landslides lightning mold pollution smoke "
    "storms strikes theft vandalism".split()
)
COLORS = tuple("beige black blue brown gold gray green orange pink purple red silver white yellow".split())
MATERIALS = tuple(
    "aluminum bamboo brick cedar clay concrete copper glass iron limestone marble oak plaster slate steel "
    "timber".split()
)
NUMBERS = tuple(str(number) for number in range(10, 100))


@dataclass(frozen=True)
class Slot:
    """One kind of fact.

    Attributes:
        name: of the slot.
        question: about the fact.
        cues: ways to state the fact after one of `LEADS`; `{}` is replaced by the value.
        values: the values that the fact can have.
    """

    name: str
    question: str
    cues: tuple[str, ...]
    values: tuple[str, ...]


SLOTS = {
    slot.name: slot
    for slot in (
        Slot("leader", "Leader of the effort?", ("effort was led by {}", "team was headed by {}"), PEOPLE),
        Slot("critic", "Critic of the plan?", ("plan was opposed by {}", "loudest critic was {}"), PEOPLE),
        Slot("job", "Job of the leader?", ("leader works as a {}", "leader was trained as a {}"), JOBS),
        Slot("company", "Winner of the contract?", ("contract went to {}", "contract was won by {}"), COMPANIES),
        Slot("city", "City of the events?", ("scene was in {}", "events took place in {}"), CITIES),
        Slot("month", "Month of completion?", ("work will end in {}", "last stage is due in {}"), MONTHS),
        Slot("place", "Building reopened?", ("crews reopened the {}", "doors opened at the {}"), PLACES),
        Slot("cause", "Cause of the closure?", ("closure was caused by {}", "trouble began with {}"), CAUSES),
        Slot("workers", "Workers hired?", ("project hired {} workers", "number of new jobs is {}"), NUMBERS),
        Slot("cost", "Cost in millions?", ("bill came to {} million", "price was put at {} million"), NUMBERS),
        Slot("color", "Color of the roof?", ("roof was painted {}", "new roof is {}"), COLORS),
        Slot("material", "Material of the walls?", ("walls are made of {}", "walls were rebuilt in {}"), MATERIALS),
    )
}

LEADS = ("The ", "Officials said the ", "Reports say the ", "Locals confirmed that the ", "It is known that the ")

# Sentences that contain a value but answer no question.
DISTRACTORS = (
    ("Neighbor {} welcomed the news.", PEOPLE),
    ("Songs by {} were played all day.", PEOPLE),
    ("Visitors arrived from {} too.", CITIES),
    ("Similar cases were seen near {}.", CITIES),
    ("Route {} stayed open.", NUMBERS),
    ("Some {} people watched from afar.", NUMBERS),
    ("Shares of {} did not move.", COMPANIES),
    ("Rain had fallen since {}.", MONTHS),
    ("One retired {} brought flowers.", JOBS),
    ("Many guests wore {} hats.", COLORS),
)

FILLERS = (
    "Officials declined to comment further.",
    "Residents gathered to watch.",
    "More details are expected soon.",
    "Local media covered the story widely.",
    "Experts had long called for change.",
    "The announcement drew a large crowd.",
    "Critics said it came too late.",
    "Traffic was slow for hours.",
    "Children waved small flags.",
    "Nobody was hurt.",
    "Similar plans exist elsewhere.",
    "The mood was calm.",
    "Opinions in the area remain divided.",
    "Another meeting will follow.",
)

FEWEST_WORDS, MOST_WORDS = 80, 150


@dataclass(frozen=True)
class Article:
    """An article and its true facts.

    Attributes:
        id: of the article.
        text: all sentences.
        facts: value by slot name, for the slots that the text states.
        cores: cue and value of each fact by slot name, without lead and full stop.
        others: the sentences that state no fact.
    """

    id: str
    text: str
    facts: dict[str, str]
    cores: dict[str, str]
    others: tuple[str, ...]


def article(rng: random.Random, id: str = "") -> Article:
    """A random article of 8 to 10 facts, 2 or 3 distractors and 4 to 8 fillers, 80 to 150 words in all.

    No value occurs twice in it, so the answer to a question has exactly one place in the text.
    """
    while True:
        draft = _draft(rng, id)
        if FEWEST_WORDS <= len(draft.text.split()) <= MOST_WORDS:
            return draft


def _draft(rng: random.Random, id: str) -> Article:
    names = rng.sample(list(SLOTS), rng.randint(8, 10))
    used: set[str] = set()

    def unused(values: tuple[str, ...]) -> str:
        value = rng.choice([value for value in values if value not in used])
        used.add(value)
        return value

    facts = {name: unused(SLOTS[name].values) for name in names}
    cores = {name: rng.choice(SLOTS[name].cues).format(value) for name, value in facts.items()}
    distractors = [sentence.format(unused(values)) for sentence, values in rng.sample(DISTRACTORS, rng.randint(2, 3))]
    others = (*distractors, *rng.sample(FILLERS, rng.randint(4, 8)))
    return Article(
        id,
        shuffle_sentences([*(to_sentence(core, rng) for core in cores.values()), *others], rng),
        facts,
        cores,
        others,
    )


def to_sentence(core: str, rng: random.Random) -> str:
    """A fact as a sentence: a random lead, then the cue and value."""
    return f"{rng.choice(LEADS)}{core}."


def shuffle_sentences(sentences: list[str], rng: random.Random) -> str:
    """The sentences in random order, as one text."""
    return " ".join(rng.sample(sentences, len(sentences)))


_FACT_PATTERNS = {
    slot.name: re.compile(
        r"\bthe (?:" + "|".join(cue.format("(" + "|".join(slot.values) + ")") for cue in slot.cues) + r")\.", re.I
    )
    for slot in SLOTS.values()
}


def facts_in(text: str) -> dict[str, list[str]]:
    """The values that a text of this world states, by slot name.

    >>> facts_in("Reports say the roof was painted blue. Nobody was hurt.")
    {'color': ['blue']}
    """
    facts = {
        name: [next(value for value in match.groups() if value) for match in pattern.finditer(text)]
        for name, pattern in _FACT_PATTERNS.items()
    }
    return {name: values for name, values in facts.items() if values}


def vocabulary_texts() -> list[str]:
    """Texts that contain every word of the world, both at the start of a text and after a space."""
    facts = [cue.format(value) for slot in SLOTS.values() for cue in slot.cues for value in slot.values]
    distractors = [sentence.format(value) for sentence, values in DISTRACTORS for value in values]
    sentences = [*(f"{lead}{facts[0]}." for lead in LEADS), *distractors, *FILLERS]
    return [
        *sentences,
        *(f" {text}" for text in (*sentences, *facts)),
        *(f" {slot.question}" for slot in SLOTS.values()),
    ]
