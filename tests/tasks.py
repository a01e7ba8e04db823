"""Files of tasks in every format, made of the text the demo's model was not trained on.

The question of an item is a line of a held-out module, and the next line is the right answer;
the wrong ones are lines from elsewhere in it.
"""

import json
import struct
from random import Random

from gemcut.demo.text import held_out_text

N_ITEMS = 40


def questions(count=N_ITEMS, n_choices=4, seed=1):
    """(line, choices, number of the right one)."""
    random = Random(seed)
    lines = [line.strip() for line in held_out_text().splitlines()]
    lines = [line for line in lines if 20 <= len(line) <= 70 and len(line.split()) > 4]
    found = []
    for _ in range(count):
        place = random.randrange(len(lines) - 1)
        choices = random.sample(lines, n_choices)
        answer = random.randrange(n_choices)
        choices[answer] = lines[place + 1]
        found.append((lines[place], choices, answer))
    return found


def hellaswag(items):
    """The text of a HellaSwag file."""
    blocks = ["\n".join([line, str(answer), *choices]) for line, choices, answer in items]
    return "\n".join(blocks) + "\n"


def multiple_choice(items):
    """The bytes of llama.cpp's binary file."""

    def text(words):
        data = words.encode()
        return struct.pack("<I", len(data)) + data

    def answers(choices, labels):
        numbers = struct.pack(f"<{len(labels)}i", *labels)
        return struct.pack("<I", len(choices)) + b"".join(map(text, choices)) + numbers

    bodies = [
        text(line)
        + answers(choices, [int(number == answer) for number in range(len(choices))])
        + answers([], [])
        for line, choices, answer in items
    ]
    place, places = 4 * (1 + len(bodies)), []
    for body in bodies:
        places.append(place)
        place += len(body)
    return struct.pack(f"<{1 + len(bodies)}I", len(bodies), *places) + b"".join(bodies)


def jsonl(items, domains=("",)):
    """The text of a JSONL file."""
    return "".join(
        json.dumps(
            {
                "question": line,
                "choices": choices,
                "answer": answer,
                "domain": domains[number % len(domains)],
            }
        )
        + "\n"
        for number, (line, choices, answer) in enumerate(items)
    )


def winogrande(items):
    """The text of a Winogrande file: a word of a line left out, another one beside it."""
    rows = []
    for number, (line, choices, _) in enumerate(items):
        first, right, *others = _words(line)
        pair = [right, _words(choices[0])[0]]
        if number % 2:
            pair.reverse()
        sentence = " ".join([first, "_", *others])
        rows.append(f'{number},"{sentence}",{",".join(pair)},{1 + number % 2}')
    return "\n".join(rows) + "\n"


def _words(line):
    """Words without what has a meaning in such a file."""
    kept = "".join(" " if character in '",_' else character for character in line)
    return kept.split() + ["it", "is", "so"]


# Written for the tests: the same whatever Python's library says.
FIXED = [
    (
        "def __init__(self, name):",
        ["return None", "self.name = name", "import sys", "raise name.self"],
        1,
    ),
    ("for key, value in", ["items.self():", "value.key", "None:", "self.items():"], 3),
    ("if not isinstance(value, str):", ["raise TypeError", "class value", "str not", "def"], 0),
    ("Return the number of", ["if self.", "the the", "characters in the string.", "(("], 2),
    ("with open(filename) as", ["f:", "import", "raise", "and not"], 0),
    ("try: import", ["not None", "threading", "self.", "== 0"], 1),
]
FIXED_WINOGRANDE = """\
0,The file is closed because _ is not needed any more.,the file,the moon,1
1,"If the name, or the path, is None, then _ the current directory is used.",yellow,only,2
2,Return True if _ is a string and False otherwise.,the,the value,2
3,The class _ a file.,opens,green,1
4,Raise an error if the _ does not exist in the list.,value,was,1
5,Set the value of _ to None.,key,self.key,1"""
