"""An invented news world whose facts are known, so that a judge's keys and answers can be checked against the truth.

An article is some facts, some filler and a few distractors (a person, a city, a number that answers nothing), in
random order. A fact is a *cue* and then its *value*: "effort was led by | Elena Santos". The value always follows its
cue, because tiny models learn to look up what comes after, not what came before (newsroom/README.md). Left out:
questions and summaries (`tasks`), and anything that knows of tokens or models.
"""

import random
import re
from dataclasses import dataclass

# Everyone has a first and a last name of their own, so that either name tells the person.
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
    """One kind of fact: what it is called, the question about it, its cues, and the values it may have.

    Every cue is said after a lead that ends in "the"; `{}` is where the value goes.
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

# Sentences that name a value and answer nothing.
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
    """An article and what is true in it.

    Args:
        facts: value by slot name; a slot that is missing here is not told in the text.
        cores: the words that tell each fact, without lead and full stop.
        others: the sentences that tell no fact.
    """

    id: str
    text: str
    facts: dict[str, str]
    cores: dict[str, str]
    others: tuple[str, ...]


def article(rng: random.Random, id: str = "") -> Article:
    """A random article of 8 to 10 facts, 2 or 3 distractors and at least 4 fillers: 80 to 150 words.

    No value is named twice in it, so what a question asks for has one place in the text.
    """
    while True:
        made = _draft(rng, id)
        if FEWEST_WORDS <= len(made.text.split()) <= MOST_WORDS:
            return made


def _draft(rng: random.Random, id: str) -> Article:
    names = rng.sample(list(SLOTS), rng.randint(8, 10))
    used: set[str] = set()

    def fresh(values: tuple[str, ...]) -> str:
        value = rng.choice([value for value in values if value not in used])
        used.add(value)
        return value

    facts = {name: fresh(SLOTS[name].values) for name in names}
    cores = {name: rng.choice(SLOTS[name].cues).format(value) for name, value in facts.items()}
    distractors = [said.format(fresh(values)) for said, values in rng.sample(DISTRACTORS, rng.randint(2, 3))]
    others = (*distractors, *rng.sample(FILLERS, rng.randint(4, 8)))
    return Article(id, prose([*(say(core, rng) for core in cores.values()), *others], rng), facts, cores, others)


def say(core: str, rng: random.Random) -> str:
    """A fact as a sentence, with a random lead."""
    return f"{rng.choice(LEADS)}{core}."


def prose(sentences: list[str], rng: random.Random) -> str:
    """The sentences in random order."""
    return " ".join(rng.sample(sentences, len(sentences)))


_TELLS = {
    slot.name: re.compile(
        r"\bthe (?:" + "|".join(cue.format("(" + "|".join(slot.values) + ")") for cue in slot.cues) + r")\.", re.I
    )
    for slot in SLOTS.values()
}


def facts_in(text: str) -> dict[str, list[str]]:
    """Every value that `text` tells for each slot it speaks of: the truth, read back from any text of this world.

    >>> facts_in("Reports say the roof was painted blue. Nobody was hurt.")
    {'color': ['blue']}
    """
    told = {
        name: [next(value for value in found.groups() if value) for found in tells.finditer(text)]
        for name, tells in _TELLS.items()
    }
    return {name: values for name, values in told.items() if values}


def every_text() -> list[str]:
    """Texts that between them hold every word of the world, as it stands first in a text and inside one."""
    told = [cue.format(value) for slot in SLOTS.values() for cue in slot.cues for value in slot.values]
    named = [said.format(value) for said, values in DISTRACTORS for value in values]
    sentences = [*(f"{lead}{told[0]}." for lead in LEADS), *named, *FILLERS]
    return [
        *sentences,
        *(f" {text}" for text in (*sentences, *told)),
        *(f" {slot.question}" for slot in SLOTS.values()),
    ]
