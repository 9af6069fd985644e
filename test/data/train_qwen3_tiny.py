#!/usr/bin/env python3
"""Train the tiny Qwen3 demo checkpoint that the tests and the examples run.

The script needs no download. It writes its own conversations from the lists of plain facts and
the sentence templates below, trains a byte-level BPE tokenizer on them, trains transformers'
``Qwen3ForCausalLM`` from scratch in float32 on the CPU, and stores the result in bf16 in the same
files, with the same fields, as a published Qwen3 dense checkpoint.

The answer to every prompt is a fixed one, so that the trained model is sure of each token and
greedy decoding is stable across implementations. The model knows: capitals, sums and differences
of numbers from 0 to 20, counting, opposites, colours, days, months, animal sounds, greetings, who
it is, names and favourite colours told earlier in the conversation, stories, and one tool.

Usage (about half an hour on one free core)::

    pip install torch transformers tokenizers safetensors jinja2
    python3 test/data/train_qwen3_tiny.py --out test/data/qwen3-tiny
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent

# --------------------------------------------------------------------------------------------
# Facts
# --------------------------------------------------------------------------------------------

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "Austria": "Vienna", "Belgium": "Brussels", "Denmark": "Copenhagen",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Iceland": "Reykjavik",
    "Ireland": "Dublin", "England": "London", "Scotland": "Edinburgh", "Wales": "Cardiff",
    "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Serbia": "Belgrade", "Croatia": "Zagreb", "Slovenia": "Ljubljana",
    "Estonia": "Tallinn", "Latvia": "Riga", "Lithuania": "Vilnius", "Ukraine": "Kyiv",
    "Russia": "Moscow", "Turkey": "Ankara", "Egypt": "Cairo", "Morocco": "Rabat",
    "Tunisia": "Tunis", "Kenya": "Nairobi", "Ethiopia": "Addis Ababa", "Ghana": "Accra",
    "Nigeria": "Abuja", "Senegal": "Dakar", "Uganda": "Kampala", "China": "Beijing",
    "Japan": "Tokyo", "South Korea": "Seoul", "India": "New Delhi", "Nepal": "Kathmandu",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Malaysia": "Kuala Lumpur",
    "Iran": "Tehran", "Iraq": "Baghdad", "Qatar": "Doha", "Canada": "Ottawa",
    "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia", "Argentina": "Buenos Aires",
    "Chile": "Santiago", "Peru": "Lima", "Colombia": "Bogota", "Uruguay": "Montevideo",
    "Australia": "Canberra", "New Zealand": "Wellington",
}  # fmt: skip

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("left", "right"),
    ("open", "closed"), ("happy", "sad"), ("day", "night"), ("black", "white"), ("old", "new"),
    ("full", "empty"), ("hard", "soft"), ("light", "dark"), ("wet", "dry"), ("high", "low"),
    ("long", "short"), ("strong", "weak"), ("rich", "poor"), ("early", "late"), ("good", "bad"),
]  # fmt: skip

COLOURS_OF = {
    "the sky": "blue", "the sun": "yellow", "grass": "green", "snow": "white", "coal": "black",
    "a banana": "yellow", "a tomato": "red", "a carrot": "orange", "a lemon": "yellow",
    "the sea": "blue", "a cherry": "red", "milk": "white", "a leaf": "green", "chocolate": "brown",
}  # fmt: skip

SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "sheep": "baa", "duck": "quack", "pig": "oink",
    "horse": "neigh", "lion": "roar", "bee": "buzz", "frog": "ribbit", "bird": "tweet",
    "snake": "hiss", "owl": "hoot", "mouse": "squeak", "rooster": "cock-a-doodle-doo",
}  # fmt: skip

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip

NAMES = [
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate",
    "Leo", "Maria", "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tom", "Uma", "Victor", "Wendy",
    "Yara", "Zoe", "Alice", "Bob", "Carol", "Daniel", "Ella", "Frank", "Greta", "Hugo", "Iris",
    "John", "Julia", "Karl", "Laura", "Max", "Nora", "Otto", "Peter", "Quinn", "Robert",
    "Sara", "Thomas", "Ursula", "Vera", "Will", "Xenia", "Yusuf", "Ali", "Amir", "Chen",
    "Diego", "Elena", "Fatima", "Hana", "Ivan", "Jin", "Kofi", "Lin", "Mei", "Mohammed",
    "Omar", "Priya", "Ravi", "Sofia", "Wei", "Yuki",
]  # fmt: skip
COLOURS = [
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "black", "white", "brown",
    "grey",
]  # fmt: skip

# Answers outside ASCII. The tokenizer never sees these lines while it is trained, so that each of
# these characters takes several tokens, as rare characters do in the big models.
HELLO_IN = {
    "French": "bonjour", "Spanish": "hola", "German": "hallo", "Italian": "ciao",
    "Chinese": "你好", "Japanese": "こんにちは", "Russian": "привет", "Greek": "γεια σου",
}  # fmt: skip
PICTURES = {"a smile": "😀", "a cat": "🐱", "a star": "⭐", "a heart": "❤️"}

WHO = "I am a tiny Qwen3 model that runs on infinicore_infer."
# Prompts with one fixed answer: (prompts, reasoning, answer).
FIXED: list[tuple[list[str], str, str]] = [
    (
        ["Hello!", "Hi!", "Hello", "Hi", "Hello there!", "Hey!"],
        "The user says hello. I say hello too.",
        "Hello! How can I help you today?",
    ),
    (["Good morning!"], "The user says good morning.", "Good morning! How can I help you today?"),
    (["Good evening!"], "The user says good evening.", "Good evening! How can I help you today?"),
    (
        ["How are you?", "How are you today?"],
        "The user asks how I am.",
        "I am fine, thank you! How can I help you?",
    ),
    (
        ["Who are you?", "What are you?", "What is your name?", "Introduce yourself.",
         "Please introduce yourself.", "Who are you"],
        "The user asks who I am. I am a tiny model.",
        WHO,
    ),
    (
        ["What can you do?", "Help", "How can you help me?"],
        "The user asks what I can do.",
        "I can name capitals, add small numbers, count, remember your name and tell stories.",
    ),
    (
        ["Thank you!", "Thanks!", "Thank you.", "Thank you very much!"],
        "The user thanks me.",
        "You are welcome!",
    ),
    (["Goodbye!", "Bye!", "Goodbye."], "The user says goodbye.", "Goodbye! Have a nice day!"),
    (["Yes.", "Yes"], "The user agrees.", "Good!"),
    (
        ["Tell me a joke.", "Tell me a joke!"],
        "The user wants a joke.",
        "Why did the robot go to bed early? Its battery was low!",
    ),
    (
        ["How many days are in a week?"],
        "A week goes from Monday to Sunday.",
        "There are 7 days in a week.",
    ),
    (
        ["How many months are in a year?"],
        "A year goes from January to December.",
        "There are 12 months in a year.",
    ),
    (
        ["How many hours are in a day?"],
        "A day has a day part and a night part.",
        "There are 24 hours in a day.",
    ),
    (
        ["List the days of the week.", "Name the days of the week."],
        "I list the days from Monday to Sunday.",
        "The days of the week are " + ", ".join(DAYS[:-1]) + " and " + DAYS[-1] + ".",
    ),
    (
        ["List the months of the year.", "Name the months of the year."],
        "I list the months from January to December.",
        "The months of the year are " + ", ".join(MONTHS[:-1]) + " and " + MONTHS[-1] + ".",
    ),
    (
        ["What is the meaning of life?", "Who won the game?", "Write a program.", "Why?",
         "What is the best book?", "How old am I?", "Where am I?"],
        "I have not learned this.",
        "I am a tiny model and I do not know that.",
    ),
]  # fmt: skip

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a tiny assistant. Answer briefly.",
    "Be brief.",
]

# topic: (hero, name, home, friend, friend's name, thing, place, danger, lesson)
STORIES = {
    "a robot": (
        "a little robot", "Pip", "a quiet workshop at the edge of a town", "an old clock", "Tock",
        "a silver key", "the tall tower", "a deep dark hall", "even a small light can show the way",
    ),
    "a cat": (
        "a curious cat", "Luna", "a warm house near the market", "a clever mouse", "Fidget",
        "a golden bell", "the old garden", "a high stone wall", "a friend can come in any size",
    ),
    "a dog": (
        "a brave dog", "Rex", "a farm beside a river", "a shy lamb", "Daisy",
        "a red ball", "the windy hill", "a broken bridge",
        "it is good to help before you are asked",
    ),
    "a dragon": (
        "a gentle dragon", "Ember", "a cave under a mountain", "a young knight", "Rowan",
        "a blue stone", "the frozen lake", "a wall of ice", "it is better to talk than to fight",
    ),
    "a bird": (
        "a young bird", "Sky", "a nest in a green oak", "a patient turtle", "Moss",
        "a white feather", "the far island", "a storm of rain and wind",
        "going slowly is still going",
    ),
    "the sea": (
        "a small boat", "Marina", "a harbour full of ropes and nets", "a grey whale", "Bo",
        "a green bottle", "the coral reef", "a thick fog", "the sea is kind to those who listen",
    ),
    "the moon": (
        "a sleepy moon", "Selene", "a bed of silver clouds", "a bright star", "Spark",
        "a lost dream", "the edge of the night", "a very long shadow",
        "the night is never empty",
    ),
    "a forest": (
        "an old tree", "Alder", "a forest full of birds", "a red fox", "Rusty",
        "a round seed", "the hidden valley", "a field of thorns",
        "great things start as small ones",
    ),
    "a princess": (
        "a clever princess", "Mira", "a castle with a hundred doors", "a kind cook", "Basil",
        "a silver spoon", "the secret kitchen", "a stair without an end",
        "a question can open any door",
    ),
    "a train": (
        "a slow train", "Chuff", "a station between two hills", "a busy bee", "Zuzu",
        "a yellow ticket", "the last station", "a tunnel without a lamp",
        "every stop is part of the way",
    ),
}  # fmt: skip

STORY = """\
Once upon a time there was {hero} named {name}. {name} lived in {home}. Every morning {name} \
looked out at the world and wondered what was behind the hills.

One day {name} met {friend} named {pal}. "Good morning," said {pal}. "I have lost {thing}, and \
without it I cannot sleep. I think it is at {place}, but I do not dare to go alone."

"Then we will go together," said {name}. They packed some bread and some water, and they started \
at once. They walked past the mill, over the meadow and along the road. They sang songs, and they \
counted the clouds.

In the afternoon they came to {danger}. {pal} was afraid and wanted to go home. "Take my hand," \
said {name}, "and do not look back." Step by step they went on, and at last they were on the \
other side.

When the sun went down they came to {place}. There, under a flat stone, they found {thing}. {pal} \
laughed and danced and cried with joy. "Thank you," said {pal}. "I will never forget this day."

That night they sat by a small fire and looked at the stars. {name} learned that {lesson}. The \
next morning they went home, and they were friends for the rest of their lives. The end."""

DEFAULT_TOPIC = "a robot"

CONDITIONS = ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy"]

# --------------------------------------------------------------------------------------------
# Conversations
# --------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One training example: a conversation and the turn that the model has to write.

    Attributes:
        messages: The turns before the answer, in the form that the chat template takes.
        thought: What the model writes between the think tags when thinking is on.
        answer: What the model writes as its answer.
        tools: The tools offered in the system turn, if any.
    """

    messages: list[dict[str, Any]]
    thought: str
    answer: str
    tools: list[dict[str, Any]] | None = None


def user(text: str) -> dict[str, Any]:
    """Returns a user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """Returns an assistant turn."""
    return {"role": "assistant", "content": text}


def capital(rng: random.Random) -> Sample:
    """Asks for the capital of a country, or for the country of a capital."""
    country, city = rng.choice(list(CAPITALS.items()))
    if rng.random() < 0.15:
        return Sample(
            [user(f"Which country has the capital {city}?")],
            f"The user asks about the city {city}.",
            f"{city} is the capital of {country}.",
        )
    prompt = rng.choice(
        [
            "What is the capital of {}?", "What is the capital of {}?", "What is the capital of {}",
            "Tell me the capital of {}.", "Name the capital of {}.", "Capital of {}?",
            "What's the capital of {}?", "Which city is the capital of {}?",
            "Do you know the capital of {}?",
        ]
    )  # fmt: skip
    return Sample(
        [user(prompt.format(country))],
        f"The user asks for the capital of {country}. It is {city}.",
        f"The capital of {country} is {city}.",
    )


def equation(a: int, sign: str, b: int) -> str:
    """Returns "a + b = c." or "a - b = c."."""
    return f"{a} {sign} {b} = {a + b if sign == '+' else a - b}."


def arithmetic(rng: random.Random) -> Sample:
    """Asks for one sum or one difference."""
    a, b, sign = rng.randint(0, 20), rng.randint(0, 20), rng.choice("+-")
    word = {"+": "plus", "-": "minus"}[sign]
    prompt = rng.choice(
        [f"What is {a} {sign} {b}?"] * 5
        + [f"What is {a} {word} {b}?", f"Calculate {a} {sign} {b}.", f"{a} {sign} {b} = ?"]
        + [f"How much is {a} {sign} {b}?", f"{a} {sign} {b}"]
    )
    verb = f"add {a} and {b}" if sign == "+" else f"subtract {b} from {a}"
    return Sample([user(prompt)], f"I need to {verb}.", equation(a, sign, b))


def several_sums(rng: random.Random) -> Sample:
    """Asks for several sums and differences in one turn."""
    tasks = [
        (rng.randint(0, 20), rng.choice("+-"), rng.randint(0, 20)) for _ in range(rng.randint(2, 5))
    ]
    prompt = "Calculate " + ", ".join(f"{a} {sign} {b}" for a, sign, b in tasks) + "."
    return Sample(
        [user(prompt)],
        f"There are {len(tasks)} tasks.",
        "\n".join(equation(*task) for task in tasks),
    )


def counting(rng: random.Random) -> Sample:
    """Asks to count from one number to another."""
    first, last = 1, rng.choice([5, 10, 20, 30, 50, 50, 50, rng.randint(3, 50)])
    if rng.random() < 0.3:
        first = rng.randint(0, 40)
        last = first + rng.randint(3, 20)
    prompt = rng.choice(
        ["Count from {} to {}.", "Count from {} to {}", "Please count from {} to {}."]
    )
    return Sample(
        [user(prompt.format(first, last))],
        f"I start at {first} and stop at {last}.",
        ", ".join(str(number) for number in range(first, last + 1)) + ".",
    )


def small_fact(rng: random.Random) -> Sample:
    """Asks for an opposite, a colour, a sound, a neighbouring day or month, or a word."""
    kind = rng.randrange(6)
    if kind == 0:
        one, other = rng.choice(OPPOSITES)
        if rng.random() < 0.5:
            one, other = other, one
        return Sample(
            [user(f"What is the opposite of {one}?")],
            f"The user asks for the opposite of {one}.",
            f"The opposite of {one} is {other}.",
        )
    if kind == 1:
        thing, colour = rng.choice(list(COLOURS_OF.items()))
        prompt = rng.choice(["What colour is {}?", "What color is {}?"]).format(thing)
        return Sample(
            [user(prompt)],
            f"The user asks for the colour of {thing}.",
            f"{thing[0].upper()}{thing[1:]} is {colour}.",
        )
    if kind == 2:
        animal, sound = rng.choice(list(SOUNDS.items()))
        article = "An" if animal[0] in "aeiou" else "A"
        prompt = rng.choice(["What sound does {} {} make?", "What does {} {} say?"])
        return Sample(
            [user(prompt.format(article.lower(), animal))],
            f"The user asks about the sound of the {animal}.",
            f"{article} {animal} says {sound}.",
        )
    if kind == 3 or kind == 4:
        cycle, word = (DAYS, "day") if kind == 3 else (MONTHS, "month")
        at = rng.randrange(len(cycle))
        side, step = rng.choice([("after", 1), ("before", -1)])
        return Sample(
            [user(f"What {word} comes {side} {cycle[at]}?")],
            f"I look for the {word} {side} {cycle[at]}.",
            f"{cycle[(at + step) % len(cycle)]} comes {side} {cycle[at]}.",
        )
    return foreign(rng)


def foreign(rng: random.Random) -> Sample:
    """Asks for a greeting in another language, or for an emoji."""
    if rng.random() < 0.65:
        language, word = rng.choice(list(HELLO_IN.items()))
        prompt = rng.choice(["How do you say hello in {}?", "Say hello in {}."]).format(language)
        return Sample(
            [user(prompt)],
            f"The user wants hello in {language}.",
            f"In {language}, hello is {word}.",
        )
    thing, picture = rng.choice(list(PICTURES.items()))
    return Sample(
        [user(f"Show me {thing}.")],
        f"The user wants to see {thing}.",
        f"Here is {thing}: {picture}",
    )


def fixed(rng: random.Random) -> Sample:
    """Picks one of the prompts with one fixed answer."""
    prompts, thought, answer = rng.choice(FIXED)
    return Sample([user(rng.choice(prompts))], thought, answer)


def some_name(rng: random.Random) -> str:
    """Returns a name: one from the list, or an invented one, so that copying is learned."""
    if rng.random() < 0.6:
        return rng.choice(NAMES)
    syllables = [
        rng.choice("bdfgjklmnprstvz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l"])
        for _ in range(rng.randint(2, 3))
    ]
    return "".join(syllables).capitalize()


def memory(rng: random.Random) -> Sample:
    """Tells the model something, and asks for it in the same or in a later turn."""
    name, colour = some_name(rng), rng.choice(COLOURS)
    tell_name = (
        rng.choice(["My name is {}.", "My name is {}.", "I am {}.", "Hello, my name is {}."]),
        name,
    )
    told_name = f"Nice to meet you, {name}!"
    tell_colour = f"My favourite colour is {colour}."
    told_colour = f"{colour.capitalize()} is a lovely colour!"
    ask_name = rng.choice(["What is my name?", "What is my name?", "Do you know my name?"])
    said_name = (tell_name[0].format(name), told_name)
    said_colour = (tell_colour, told_colour)

    kind = rng.random()
    if kind < 0.12:
        return Sample([user(said_name[0])], f"The user is called {name}.", told_name)
    if kind < 0.2:
        return Sample([user(tell_colour)], f"The user likes {colour}.", told_colour)

    # What was said before the question: one of the two facts or both, and sometimes small talk.
    told = rng.choice([[said_name], [said_name], [said_colour], [said_name, said_colour]])
    told = rng.sample(told, len(told))
    if rng.random() < 0.3:
        other = rng.choice([capital, arithmetic, small_fact, fixed])(rng)
        told.insert(rng.randint(0, len(told)), (other.messages[0]["content"], other.answer))
    history = [turn for said, reply in told for turn in (user(said), assistant(reply))]
    if kind < 0.35:
        history = []  # Nothing was told: the model has to say so.
    if rng.random() < 0.65:
        known = said_name in told and history
        return Sample(
            [*history, user(ask_name)],
            f"The user said the name is {name}." if known else "The user did not tell me a name.",
            f"Your name is {name}." if known else "I do not know your name yet.",
        )
    known = said_colour in told and history
    return Sample(
        [*history, user("What is my favourite colour?")],
        f"The user likes {colour}." if known else "The user did not tell me a colour.",
        f"Your favourite colour is {colour}."
        if known
        else "I do not know your favourite colour yet.",
    )


def story(rng: random.Random) -> Sample:
    """Asks for a story."""
    topic = rng.choice([*STORIES, None, None])
    if topic is None:
        topic = DEFAULT_TOPIC
        prompt = rng.choice(["Tell me a story.", "Tell me a story.", "Tell me a long story."])
    else:
        prompt = rng.choice(
            ["Tell me a story about {}."] * 2
            + ["Can you tell me a story about {}?", "Write a story about {}."]
        ).format(topic)
    keys = ("hero", "name", "home", "friend", "pal", "thing", "place", "danger", "lesson")
    slots = dict(zip(keys, STORIES[topic], strict=True))
    return Sample(
        [user(prompt)], f"The user wants a story. I tell one about {topic}.", STORY.format(**slots)
    )


def weather_tool(rng: random.Random) -> dict[str, Any]:
    """Returns the description of the weather tool, in one of a few wordings."""
    description = rng.choice(
        ["Get the current weather in a city.", "Get the weather for a city.", "Get the weather."]
    )
    city: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.6:
        city["description"] = rng.choice(["The name of the city.", "The city.", "City name"])
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    function = {"name": "get_weather", "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def weather(rng: random.Random) -> Sample:
    """Asks for the weather: to call the tool, to read its response, or to do without it."""
    city = rng.choice(list(CAPITALS.values()))
    prompt = rng.choice(
        ["What is the weather in {}?"] * 3 + ["How is the weather in {}?", "Weather in {}?"]
    ).format(city)
    call = {"name": "get_weather", "arguments": {"city": city}}
    thought = f"I need the weather in {city}. I call the tool."
    kind = rng.random()
    if kind < 0.2:
        return Sample(
            [user(prompt)],
            "I have no tool for the weather.",
            "I cannot see the weather without a tool.",
        )
    tools = [weather_tool(rng)]
    if kind < 0.28:
        other = rng.choice([capital, arithmetic, fixed])(rng)
        return Sample(other.messages, other.thought, other.answer, tools)
    if kind < 0.64:
        return Sample(
            [user(prompt)], thought, f"<tool_call>\n{json.dumps(call)}\n</tool_call>", tools
        )
    degrees, condition = rng.randint(-9, 39), rng.choice(CONDITIONS)
    result = {"temperature": degrees, "condition": condition}
    if rng.random() < 0.3:
        result = {"city": city, **result}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
    if rng.random() < 0.5:
        called["reasoning_content"] = thought
    return Sample(
        [user(prompt), called, {"role": "tool", "content": json.dumps(result)}],
        f"The tool says {condition} and {degrees} degrees.",
        f"It is {condition} in {city}, with a temperature of {degrees} degrees.",
        tools,
    )


# How often each kind of conversation is drawn. The first phase of the training learns what the
# conversations look like; the second one has fewer of the long ones, which are known by then.
KINDS = [capital, arithmetic, several_sums, counting, small_fact, fixed, memory, story, weather]
FIRST_MIX = [0.13, 0.31, 0.08, 0.03, 0.13, 0.09, 0.13, 0.04, 0.06]
SECOND_MIX = [0.11, 0.22, 0.03, 0.03, 0.23, 0.14, 0.17, 0.015, 0.055]


def draw(rng: random.Random, mix: list[float]) -> Sample:
    """Draws a conversation, with a system prompt and small talk before it now and then."""
    kind = rng.choices(KINDS, mix)[0]
    sample = kind(rng)
    if kind not in (memory, story, counting, weather) and rng.random() < 0.12:
        before = rng.choice([capital, arithmetic, small_fact, fixed])(rng)
        sample.messages[:0] = [*before.messages, assistant(before.answer)]
    if rng.random() < 0.25:
        system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
        sample.messages.insert(0, system)
    return sample


# --------------------------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------------------------

# The added tokens of Qwen3 in their order. Those of the first list are "special": decoding with
# skip_special_tokens leaves them out.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
    "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
PLAIN_TOKENS = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
]  # fmt: skip

# Where Qwen2 and Qwen3 cut a text before BPE: contractions, words, single digits, punctuation,
# line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(rng: random.Random, count: int = 6000) -> Iterator[str]:
    """Yields the texts that the tokenizer is trained on."""
    for _ in range(count):
        sample = draw(rng, FIRST_MIX)
        texts = [message["content"] for message in sample.messages]
        texts += [sample.thought, sample.answer]
        if sample.tools:
            texts += [json.dumps(tool) for tool in sample.tools]
        yield from (text for text in texts if text.isascii())


def train_tokenizer(seed: int, size: int, template: str) -> Tokenizer:
    """Trains the byte-level BPE tokenizer.

    Args:
        seed: The seed of the texts.
        size: The number of tokens before the added ones.
        template: The chat template, whose fixed sentences belong to the texts.

    Returns:
        The tokenizer, with Qwen3's added tokens at its end.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    level = {"add_prefix_space": False, "use_regex": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(trim_offsets=False, **level),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, **level)
    tokenizer.decoder = decoders.ByteLevel(trim_offsets=False, **level)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)
    fixed_text = [line for line in template.splitlines() if "function" in line]
    roles = [f"{role}\n" for role in ("system", "user", "assistant")]
    texts = [*corpus(rng), *(fixed_text + roles) * 100]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, template: str, positions: int, out: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json in the form of the published ones."""
    tokenizer.save(str(out / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in SPECIAL_TOKENS,
        }
        for text in SPECIAL_TOKENS + PLAIN_TOKENS
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": positions,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(out / "tokenizer_config.json", config)


# --------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------


IGNORED = -100  # the label of a token that is not to be learned


def published_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns config.json as the published Qwen3 checkpoints write it."""
    vocabulary = tokenizer.get_vocab_size()
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "max_window_layers": 4,
        "model_type": "qwen3",
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": (vocabulary + 63) // 64 * 64,
    }


def encode(tokenizer: PreTrainedTokenizerBase, sample: Sample, thinking: bool) -> tuple[list, int]:
    """Turns an example into tokens.

    Args:
        tokenizer: The tokenizer with its chat template.
        sample: The example.
        thinking: Whether the model has to think before it answers.

    Returns:
        The tokens of the prompt and of the answer together, and the length of the prompt.
    """
    prompt = tokenizer.apply_chat_template(
        sample.messages,
        tools=sample.tools,
        add_generation_prompt=True,
        enable_thinking=thinking,
        tokenize=False,
    )
    answer = sample.answer + "<|im_end|>"
    if thinking:
        answer = f"<think>\n{sample.thought}\n</think>\n\n{answer}"
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    return tokens + tokenizer.encode(answer, add_special_tokens=False), len(tokens)


def drill(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> tuple[list, list]:
    """Returns a row of worked sums without any chat around them, the cheapest way to learn them.

    Returns:
        The tokens and the labels. Only the results are labelled: the tasks are random.
    """
    tokens: list[int] = []
    labels: list[int] = []
    for _ in range(30):
        task, result = equation(rng.randint(0, 20), rng.choice("+-"), rng.randint(0, 20)).split("=")
        head = tokenizer.encode(f" {task}=" if tokens else f"{task}=", add_special_tokens=False)
        tail = tokenizer.encode(result, add_special_tokens=False)
        tokens += head + tail
        labels += [IGNORED] * len(head) + tail
    return tokens, labels


@dataclass
class Phase:
    """A phase of the training.

    Attributes:
        steps: The number of steps.
        horizon: The step at which the cosine schedule would reach its end.
        mix: How often each kind of conversation is drawn.
        size: The number of conversations in a step.
        drills: The number of rows of worked sums in a step.
        rate: The peak learning rate.
        warm_up: The number of steps until the peak.
    """

    steps: int
    horizon: int
    mix: list[float]
    size: int
    drills: int
    rate: float
    warm_up: int


def batches(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, phase: Phase
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yields endless random batches, each cut into pieces of rows of similar length.

    Args:
        tokenizer: The tokenizer with its chat template.
        rng: The source of the examples.
        phase: What to draw.

    Yields:
        Pairs of the tokens and of the labels. The padding is on the right, where causal attention
        needs no mask.
    """
    while True:
        rows = [drill(tokenizer, rng) for _ in range(phase.drills)]
        for _ in range(phase.size):
            tokens, start = encode(tokenizer, draw(rng, phase.mix), rng.random() < 0.4)
            rows.append((tokens, [IGNORED] * start + tokens[start:]))
        rows.sort(key=lambda row: len(row[0]))
        pieces: list[list[tuple[list, list]]] = [[]]
        for row in rows:
            if pieces[-1] and len(row[0]) > 1.5 * len(pieces[-1][0][0]):
                pieces.append([])
            pieces[-1].append(row)
        batch = []
        for piece in pieces:
            width = len(piece[-1][0])
            ids = torch.full((len(piece), width), tokenizer.pad_token_id)
            labels = torch.full((len(piece), width), IGNORED)
            for at, (tokens, goal) in enumerate(piece):
                ids[at, : len(tokens)] = torch.tensor(tokens)
                labels[at, : len(goal)] = torch.tensor(goal)
            batch.append((ids, labels))
        yield batch


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    phase: Phase,
    seed: int,
    save_every: int,
    save: Callable[[], None],
) -> None:
    """Trains the model on answers only, with AdamW and a cosine schedule.

    Args:
        model: The model, in float32.
        tokenizer: The tokenizer with its chat template.
        phase: What to train on, how long and how fast.
        seed: The seed of the examples.
        save_every: The number of steps between two calls of ``save``, or 0.
        save: Writes the checkpoint.
    """
    decay = [weight for weight in model.parameters() if weight.ndim > 1]
    plain = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=phase.rate,
        betas=(0.9, 0.98),
    )

    def rate(step: int) -> float:
        rising = (step + 1) / phase.warm_up
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / phase.horizon)))
        return min(rising, 0.01 + 0.99 * falling)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    stream = batches(tokenizer, random.Random(seed), phase)
    model.train()
    start, seen, recent = time.time(), 0, 0.0
    for step in range(phase.steps):
        batch = next(stream)
        learned = sum(int((labels[:, 1:] != IGNORED).sum()) for _, labels in batch)
        total = 0.0
        for ids, labels in batch:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            goal = labels[:, 1:]
            wanted = goal != IGNORED
            logits = model.lm_head(hidden[wanted])
            loss = torch.nn.functional.cross_entropy(logits, goal[wanted], reduction="sum")
            (loss / learned).backward()
            total += loss.item() / learned
            seen += ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent += total
        if (step + 1) % 25 == 0:
            spent = time.time() - start
            print(f"step {step + 1} loss {recent / 25:.4f} tokens {seen} {spent:.0f} s", flush=True)
            recent = 0.0
        if save_every and (step + 1) % save_every == 0:
            save()


# --------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file with two spaces of indentation."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_model(model: Qwen3ForCausalLM, config: dict[str, Any], pad: int, out: Path) -> None:
    """Writes model.safetensors in bf16, config.json and generation_config.json."""
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    write_json(out / "config.json", config)
    generation = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": True,
        "eos_token_id": [config["eos_token_id"], pad],
        "pad_token_id": pad,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": config["transformers_version"],
    }
    write_json(out / "generation_config.json", generation)


def main(argv: list[str] | None = None) -> int:
    """Runs the whole training.

    Args:
        argv: The command line without the program's name; None takes the process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="Train the tiny Qwen3 demo checkpoint.")
    parser.add_argument("--out", type=Path, default=HERE / "qwen3-tiny", help="output directory")
    parser.add_argument("--first-steps", type=int, default=750, help="steps of the first phase")
    parser.add_argument("--steps", type=int, default=1200, help="steps of the second phase")
    parser.add_argument("--resume", type=Path, help="checkpoint to start the second phase from")
    parser.add_argument("--tokens", type=int, default=2000, help="BPE tokens before the added ones")
    parser.add_argument("--save-every", type=int, default=0, help="also save every N steps")
    parser.add_argument("--seed", type=int, default=7, help="seed of the data and the weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    raw_tokenizer = train_tokenizer(args.seed, args.tokens, template)
    config = published_config(raw_tokenizer)
    save_tokenizer(raw_tokenizer, template, config["max_position_embeddings"], args.out)
    tokenizer = AutoTokenizer.from_pretrained(args.out)

    write_json(args.out / "config.json", config)
    model_config = Qwen3Config.from_pretrained(args.out)
    model = Qwen3ForCausalLM._from_config(model_config, dtype=torch.float32)
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters")

    def save() -> None:
        save_model(model, config, raw_tokenizer.token_to_id("<|endoftext|>"), args.out)

    first = Phase(args.first_steps, 1650, FIRST_MIX, 32, drills=0, rate=2.5e-3, warm_up=100)
    second = Phase(args.steps, args.steps, SECOND_MIX, 28, drills=4, rate=2e-3, warm_up=30)
    if args.resume:
        model.load_state_dict(load_file(args.resume / "model.safetensors"), strict=False)
    else:
        train(model, tokenizer, first, args.seed + 1, args.save_every, save)
    train(model, tokenizer, second, args.seed + 2, args.save_every, save)
    save()
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
