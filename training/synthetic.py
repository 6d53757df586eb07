"""Text that the training makes itself: lists, counting, sums, capitals, questions, chats."""

import random
from collections.abc import Callable
from typing import Final

from training import facts

Chat = list[tuple[str, str]]

LIST_FORMS: Final = [
    "A list of {name}: {items}.",
    "A list of {name}: {items}.",
    "A list of {name}: {items}.",
    "Here is a list of {name}: {items}.",
    "List of {name}: {items}.",
    "This is a list of {name}: {items}.",
    "{Name}: {items}.",
    "Some {name}: {items}.",
    "{number} {name}: {items}.",
    "A list of {number_word} {name}: {items}.",
]
SAID: Final = [
    "Some {name} are {items}.",
    "I know these {name}: {items}.",
    "My favorite {name} are {items}.",
]


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def sentence_list(items: list[str]) -> str:
    """`red, blue, and green`."""
    return ", ".join(items[:-1]) + ", and " + items[-1]


def in_turn(rng: random.Random, words: list[str], count: int) -> list[str]:
    """Draw `count` different words: mostly in the table's order, from anywhere, some left out."""
    if rng.random() < 0.15:
        return rng.sample(words, count)
    # An order is soon learned, and it keeps a small model from naming a word twice.
    start = 0 if rng.random() < 0.4 else rng.randrange(len(words))
    ring = words[start:] + words[:start]
    near = range(min(len(ring), count + count // 4))
    places = sorted(rng.sample(near, count))
    places.sort(key=lambda place: place + rng.uniform(0, 1.6))
    return [ring[place] for place in places]


def draw_list(rng: random.Random, name: str, at_least: int, at_most: int) -> list[str]:
    """A list of the named kind: drawn without repeats, or in its order."""
    if name in facts.ORDERED:
        words = facts.ORDERED[name].split(", ")
        start = 0 if rng.random() < 0.7 else rng.randrange(len(words) - 2)
        return words[start:]
    words = facts.LISTS[name].split(", ")
    return in_turn(rng, words, min(len(words), rng.randint(at_least, at_most)))


def draw_name(rng: random.Random) -> str:
    """The kind of list to make; colors most often, for the first lesson asks for them."""
    draw = rng.random()
    if draw < 0.4:
        return "colors"
    return rng.choice(list(facts.ORDERED if draw < 0.55 else facts.LISTS))


def make_list(rng: random.Random) -> str:
    """A list in one of several phrasings."""
    name = draw_name(rng)
    form = rng.choice(LIST_FORMS + SAID)
    numbered = "{number" in form
    items = draw_list(rng, name, 3 if numbered else 6, 12)
    shown = "colours" if name == "colors" and rng.random() < 0.25 else name
    if form in SAID:
        return form.format(name=shown, items=sentence_list(items[: rng.randint(3, 5)]))
    if rng.random() < 0.08:
        return f"A list of {shown}:" + "".join(f"\n- {item}" for item in items)
    number = facts.NUMBERS[len(items)] if len(items) <= 20 else str(len(items))
    return form.format(
        name=shown, Name=capital(shown), number=capital(number), number_word=number,
        items=", ".join(items),
    )  # fmt: skip


def make_count(rng: random.Random) -> str:
    """Counting up, down, or by steps, in figures or in words."""
    kind = rng.randrange(4)
    if kind == 0:
        start = rng.choice([1, 1, 1, rng.randint(0, 80)])
        return counted("", range(start, start + rng.randint(5, 15)))
    if kind == 1:
        start = rng.choice([10, 10, 5, 20, rng.randint(4, 30)])
        return counted(f"Count down from {start}: ", range(start, 0 if start > 12 else -1, -1))
    if kind == 2:
        step, word = rng.choice([(2, "twos"), (3, "threes"), (5, "fives"), (10, "tens")])
        return counted(f"Count by {word}: ", range(step, step * rng.randint(6, 11), step))
    end = rng.randint(3, 20)
    if rng.random() < 0.5:
        return counted(f"Count to {end}: ", range(1, end + 1))
    return f"Count to {facts.NUMBERS[end]}: " + ", ".join(facts.NUMBERS[1 : end + 1]) + "."


def counted(lead: str, numbers: range) -> str:
    """The numbers after their lead, as one sentence."""
    return lead + ", ".join(map(str, numbers)) + "."


def is_held_out_sum(left: int, right: int) -> bool:
    """Whether a pair is kept for the evaluation and never trained on."""
    return (left * 7 + right * 3) % 11 == 0


def draw_sum(rng: random.Random, held_out: bool = False) -> tuple[int, str, int, int]:
    """Two small numbers, a sign, and the answer."""
    while True:
        top = rng.choice([5, 5, 10, 10, 10, 10, 20])
        left, right = rng.randint(0, top), rng.randint(0, top)
        if is_held_out_sum(left, right) is not held_out:
            continue
        if left >= right and rng.random() < 0.4:
            return left, "-", right, left - right
        return left, "+", right, left + right


def make_sum(rng: random.Random) -> str:
    """One small sum, or a few in lines."""
    sums = [draw_sum(rng) for _ in range(rng.choice([1, 1, 3, 5]))]
    left, sign, right, answer = sums[0]
    words = facts.NUMBERS
    if len(sums) == 1 and rng.random() < 0.3 and max(left, answer) < len(words):
        verb = "plus" if sign == "+" else "minus"
        return f"{capital(words[left])} {verb} {words[right]} is {words[answer]}."
    end = rng.choice(["", "."])
    lead = rng.choice(["", "", "Small sums:\n"]) if len(sums) > 1 else ""
    return lead + "\n".join(f"{a} {sign} {b} = {c}{end}" for a, sign, b, c in sums)


def ask_sum(rng: random.Random) -> tuple[str, str]:
    """A sum as a question."""
    left, sign, right, answer = draw_sum(rng)
    form = rng.choice(["What is {}?", "How much is {}?", "{}", "{} ="])
    reply = rng.choice(["{0} = {1}.", "{0} is {1}.", "{1}."])
    asked = f"{left} {sign} {right}"
    return form.format(asked), reply.format(asked, answer)


def ask_capital(rng: random.Random) -> tuple[str, str]:
    """A capital city as a question."""
    land, city = rng.choice(list(facts.CAPITALS.items()))
    if rng.random() < 0.2:
        return f"{city} is the capital of which country?", f"{city} is the capital of {land}."
    return f"What is the capital of {land}?", f"The capital of {land} is {city}."


def ask_color(rng: random.Random) -> tuple[str, str]:
    """What colour a thing has."""
    thing, color = rng.choice(list(facts.THINGS.items()))
    word = rng.choice(["color", "color", "colour"])
    return f"What {word} is {thing}?", f"{capital(thing)} is {color}."


def ask_list(rng: random.Random) -> tuple[str, str]:
    """A request for some things of a kind."""
    name = draw_name(rng)
    if name in facts.ORDERED:
        if name == "numbers":
            end = rng.randint(3, 12)
            return f"Count to {facts.NUMBERS[end]}.", counted("", range(1, end + 1))
        items = facts.ORDERED[name].split(", ")
        return rng.choice(["Name the {}.", "List the {}."]).format(name), ", ".join(items) + "."
    items = draw_list(rng, name, 2, 5)
    number = facts.NUMBERS[len(items)]
    form = rng.choice(["Name {} {}.", "Tell me {} {}.", "Can you name {} {}?", "List {} {}."])
    answer = rng.choice([capital(sentence_list(items)) if len(items) > 2 else "", ""])
    return form.format(number, name), (answer or capital(", ".join(items))) + "."


def ask_next(rng: random.Random) -> tuple[str, str]:
    """What comes after a day, month or number."""
    what, name = rng.choice([("day", "days"), ("month", "months"), ("number", "numbers")])
    words = facts.ORDERED[name].split(", ")
    at = rng.randrange(len(words) - 1)
    answer = f"{capital(words[at + 1])} comes after {words[at]}."
    return f"What {what} comes after {words[at]}?", answer


def ask_sound(rng: random.Random) -> tuple[str, str]:
    """What an animal says."""
    animal, sound = rng.choice(list(facts.SOUNDS.items()))
    name = ("an " if animal[0] in "aeiou" else "a ") + animal
    return rng.choice([f"What does {name} say?", f"What sound does {name} make?"]), (f"{capital(name)} says {sound}.")


def ask_opposite(rng: random.Random) -> tuple[str, str]:
    """The opposite of a word."""
    pair = rng.choice(facts.OPPOSITES)
    one, other = pair if rng.random() < 0.5 else pair[::-1]
    return f"What is the opposite of {one}?", f"The opposite of {one} is {other}."


def ask_plain(rng: random.Random) -> tuple[str, str]:
    """A question with one fixed answer."""
    return rng.choice(facts.QUESTIONS)


ASKS: Final[list[Callable[[random.Random], tuple[str, str]]]] = [
    ask_sum, ask_capital, ask_capital, ask_color, ask_list, ask_list, ask_next, ask_sound,
    ask_opposite, ask_plain, ask_plain,
]  # fmt: skip


def make_fact(rng: random.Random) -> str:
    """One or more statements, without their questions."""
    kinds = [ask_capital, ask_capital, ask_color, ask_next, ask_sound, ask_opposite]
    asks = rng.choices(kinds, k=rng.choice([1, 1, 2, 4]))
    return " ".join(dict.fromkeys(ask(rng)[1] for ask in asks))


def make_question(rng: random.Random) -> str:
    """A few questions and answers as plain text."""
    pairs = dict(rng.choice(ASKS)(rng) for _ in range(rng.choice([1, 2, 3])))
    form = rng.choice(["Q: {}\nA: {}", "{} {}", "Question: {}\nAnswer: {}"])
    return "\n".join(form.format(*pair) for pair in pairs.items())


def make_chat(rng: random.Random) -> Chat:
    """A short dialogue for the chat template: (role, content) turns."""
    turns: Chat = []
    if rng.random() < 0.2:
        turns.append(("system", rng.choice(facts.SYSTEMS)))
    pairs = [rng.choice(ASKS)(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    if rng.random() < 0.3:
        pairs.insert(0, rng.choice(facts.GREETINGS))
    for asked, answer in pairs:
        asked = asked.lower() if rng.random() < 0.1 else asked
        turns += [("user", asked), ("assistant", answer)]
    return turns


MAKERS: Final[list[Callable[[random.Random], str]]] = [
    make_list, make_list, make_list, make_list, make_count, make_sum, make_sum, make_fact,
    make_question,
]  # fmt: skip


def make_text(rng: random.Random) -> str:
    """A plain synthetic document of any kind."""
    return rng.choice(MAKERS)(rng)
