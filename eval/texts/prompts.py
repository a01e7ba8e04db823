"""What a model is asked where the user gives no prompts: a little of everything it is used for."""

from gemcut.eval.texts.text import Text

# Domains take turns, so that the first few are varied, too.
_PROMPTS = (
    ("code", "Write a Python function that merges overlapping intervals, with a docstring."),
    ("reasoning", "A train leaves at 9:40 and drives 252 km at 84 km/h. When does it arrive?"),
    ("facts", "Why is the sky blue by day and red in the evening?"),
    ("languages", "Translate into French: 'I would have called you if my phone had not died.'"),
    (
        "writing",
        "Summarise in two sentences: The town council met for four hours on Tuesday. It agreed to "
        "close the old bridge from June, because repairs would cost more than a new one. Shops on "
        "the south side fear for their customers; a ferry is to run every ten minutes until the "
        "new bridge opens, which will be in three years at the earliest.",
    ),
    ("data", "Answer in JSON alone: name, year and author of three novels from before 1900."),
    ("code", "This loop never ends: `while i != 1.0: i += 0.1`. Why, and how is it written right?"),
    ("reasoning", "Anna is older than Ben, Ben is younger than Carl, Carl is not the oldest. Who?"),
    ("facts", "What led to the fall of the Western Roman Empire? Name the main causes."),
    ("languages", "Erkläre den Unterschied zwischen 'seit' und 'vor' mit je zwei Beispielen."),
    ("writing", "Write a friendly letter to a neighbour about a tree that hangs over the fence."),
    (
        "data",
        "Extract date, amount and payee as JSON from: 'On 3 March we paid Miller & Sons 1,240.50 "
        "euros for the new roof.'",
    ),
    ("code", "Write a SQL query for the three best customers of each month, by money spent."),
    ("reasoning", "How many of the whole numbers from 1 to 100 have a 7 in them? Show each step."),
    ("facts", "How does a vaccine work? Explain it to somebody without a degree in biology."),
    ("languages", "¿Cuáles son las diferencias entre 'ser' y 'estar'? Da algunos ejemplos."),
    ("writing", "Begin a short story with a lighthouse keeper who finds a door in the rock."),
    ("data", "Compare bicycle, bus and car for a way to work of 5 km, as a table in Markdown."),
    ("code", "Write a bash script that renames all .jpeg files below a folder to .jpg."),
    ("reasoning", "Is the sum of two odd numbers always even? Prove it, or give a counterexample."),
    ("facts", "Which are the largest moons of Jupiter, and what is special about each?"),
    ("languages", "请用简单的中文介绍一下长城的历史。"),
    ("writing", "You are the captain of a small starship. Tell the crew that the fuel is short."),
    ("data", "List five European rivers by length as CSV: name, length in km, countries."),
)


def built_in() -> list[Text]:
    """The prompts, as conversations that wait for an answer."""
    return [
        Text.conversation(f"prompt {number}", [("user", prompt)], domain)
        for number, (domain, prompt) in enumerate(_PROMPTS, start=1)
    ]
