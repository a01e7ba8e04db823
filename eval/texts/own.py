"""A model's own answers: the text on which a difference between files matters most.

The reference answers prompts once, drawn with a seed. What it said is then scored by every file,
token for token, and can be kept in a file with a line of JSON for each answer:

    {"id": "prompt 1", "domain": "code",
     "messages": [...],                            the conversation, its last turn the answer
     "tokens": [...], "n_prompt": 17,              of all of it, and how many are the prompt's
     "written": "<bos>...",                        what the tokens say, by which they are checked
     "model": "...",                               the fingerprint of the file that answered
     "seed": 1, "sampling": {...}}                 how it was drawn

Its lines are conversations, as `reading` has them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gemcut.engine import Sampling
from gemcut.errors import TextError, printable
from gemcut.eval.texts.chunks import MIN_CHUNKS, Chunk
from gemcut.eval.texts.dialogue import Dialogue
from gemcut.eval.texts.framing import answer
from gemcut.eval.texts.prompts import built_in
from gemcut.eval.texts.reading import MOST_NAME, entries, text_of
from gemcut.eval.texts.text import Text, read_bytes
from gemcut.llama import Context, Model, Sampler
from gemcut.outputs import completed
from gemcut.runtime.chat.chat import recommended_sampling
from gemcut.runtime.language.prompt import prompt_tokens

_MOST_PROMPTS = 1 << 12
_MOST_TOKENS = 1 << 20  # of a prompt and its answer
# What of the sampling is kept beside an answer.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n")


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt.

    text: the conversation; the answer is its last turn, as far as it is text.
    tokens: of the prompt, framed, and of the answer with the token that ended it, if one did.
    model: the fingerprint of its file. sampling: how it was drawn.
    """

    text: Text
    tokens: tuple[int, ...]
    n_prompt: int
    model: str
    seed: int
    sampling: Mapping[str, float]


def prompts(texts: Sequence[Text], limit: int | None = None) -> list[Text]:
    """What is to be answered: every line of prose, conversations up to the user's last turn.

    limit: most prompts of each text. Without texts: prompts of our own.

    Raises:
        TextError: a conversation without a user's turn, or too many prompts.
    """
    if not texts:
        return built_in()[:limit]
    found = [prompt for text in texts for prompt in _prompts_in(text)[:limit]]
    if len(found) > _MOST_PROMPTS:
        raise TextError(
            f"{texts[0].name}: {len(found)} prompts, a line of prose being one; wanted at most "
            f"{_MOST_PROMPTS}: ask for fewer"
        )
    return found


def answers(
    context: Context,
    prompts: Sequence[Text],
    fingerprint: str,
    seed: int = 1,
    sampling: Sampling | None = None,
    n_predict: int = 256,
    think: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Answer]:
    """Answers to prompts, one after another; a prompt that the model says nothing to gives none.

    fingerprint: of the model's file. sampling: None for the file's own. n_predict: most tokens of
    an answer. think: as for `Template.render`. Without a chat template, a prompt's last turn is
    continued as plain text. progress: called with the prompts that are done, and all.

    Raises:
        TextError: a prompt fills the context.
        EngineError: the chat template refuses a prompt, or llama.cpp fails.
    """
    model = context.model
    sampling = sampling or recommended_sampling(model)
    dialogue = Dialogue(model) if model.chat_template else None
    for number, prompt in enumerate(prompts):
        read = _as_read(model, dialogue, prompt, think)
        drawn = replace(sampling, seed=seed + number)
        said = _draw(context, prompt.name, read, drawn, n_predict)
        if text := written(model, said, special=False).strip():
            messages = [*prompt.messages, ("assistant", text)]
            yield Answer(
                Text.conversation(prompt.name, messages, prompt.domain),
                (*read, *said),
                len(read),
                fingerprint,
                seed + number,
                {name: value for name, value in asdict(drawn).items() if name in _SAMPLING},
            )
        if progress is not None:
            progress(number + 1, len(prompts))


def framed(answers: Sequence[Answer], n_ctx: int) -> list[Chunk]:
    """The answers as chunks of at most n_ctx tokens; all of each answer that fits is scored.

    Raises:
        TextError: fewer than two answers fit in such a context.
    """
    found = [
        answer(each.tokens[: each.n_prompt], each.tokens[each.n_prompt :], n_ctx, number)
        for number, each in enumerate(answers)
    ]
    chunks = [chunk for chunk in found if chunk is not None]
    if len(chunks) < MIN_CHUNKS:
        raise TextError(
            f"{len(chunks)} of {len(answers)} own answers fit in a context of {n_ctx}, wanted "
            f"{MIN_CHUNKS}, for an error bar; use a larger context or more prompts"
        )
    return chunks


def write(path: Path, answers: Iterable[Answer], vocabulary: Model) -> None:
    """Keep answers, as they come, in a file that appears when all are there.

    Raises:
        OutputError: it cannot be written.
    """
    with completed(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(_entry(answer, vocabulary), ensure_ascii=False) + "\n")


def read(path: Path, vocabulary: Model) -> list[Answer]:
    """The answers that a file keeps.

    Raises:
        TextError: unreadable, not such a file, or made with another vocabulary.
    """
    found = entries(path.name, read_bytes(path))
    return [_answer(entry, f"{path.name}:{number}", vocabulary) for number, entry in found]


def written(model: Model, tokens: Iterable[int], special: bool) -> str:
    """Tokens as text, control tokens written out if `special`."""
    text = b"".join(model.piece(token, special) for token in tokens)
    return text.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _prompts_in(text: Text) -> list[Text]:
    if not text.messages:
        lines = enumerate(map(str.strip, text.content.splitlines()), start=1)
        return [
            Text.conversation(f"{text.name}:{number}", [("user", line)], text.domain)
            for number, line in lines
            if line
        ]
    users = [at for at, (role, _) in enumerate(text.messages, start=1) if role == "user"]
    if not users:
        raise TextError(f"{text.name}: no turn of a user in it that could be answered")
    return [Text.conversation(text.name, text.messages[: users[-1]], text.domain)]


def _as_read(
    model: Model, dialogue: Dialogue | None, prompt: Text, think: bool | None
) -> list[int]:
    if dialogue:
        return dialogue.prompt(prompt.messages, think)
    return prompt_tokens(model, prompt.messages[-1][1], special=False)


def _draw(
    context: Context, name: str, read: Sequence[int], sampling: Sampling, limit: int
) -> list[int]:
    """The tokens of an answer, with the one that ends it, if the model ends it."""
    limit = min(limit, context.n_ctx_seq - len(read))
    if limit < 1:
        raise TextError(
            f"{name}: a prompt of {len(read)} tokens leaves no room for an answer in a context of "
            f"{context.n_ctx_seq}: use a larger one"
        )
    context.forget()
    said: list[int] = []
    with Sampler(context.model, sampling) as sampler:
        context.decode(read, outputs="last")
        while True:
            said.append(sampler.sample(context))
            if len(said) == limit or context.model.is_end(said[-1]):
                return said
            context.decode(said[-1:], start=len(read) + len(said) - 1, outputs="last")


def _entry(answer: Answer, vocabulary: Model) -> dict[str, Any]:
    return {
        "id": printable(answer.text.name)[-MOST_NAME:],
        "domain": printable(answer.text.domain)[:MOST_NAME] or None,
        "messages": [{"role": role, "content": said} for role, said in answer.text.messages],
        "tokens": answer.tokens,
        "n_prompt": answer.n_prompt,
        "written": written(vocabulary, answer.tokens, special=True),
        "model": answer.model,
        "seed": answer.seed,
        "sampling": dict(answer.sampling),
    }


def _answer(entry: dict[str, Any], where: str, vocabulary: Model) -> Answer:
    tokens, text = entry.get("tokens"), text_of(entry, where)
    model, sampling = entry.get("model"), entry.get("sampling")
    if not (isinstance(tokens, list) and len(tokens) <= _MOST_TOKENS):
        raise TextError(f"{where}: no answer of a model: wanted a list of tokens")
    if not (isinstance(model, str) and isinstance(sampling, dict)):
        raise TextError(f"{where}: it does not say which model answered, and how it was drawn")
    n_prompt = _count(entry.get("n_prompt"), where, "n_prompt", len(tokens) - 1)
    seed = _count(entry.get("seed"), where, "seed", 1 << 62)
    ids = tuple(_count(token, where, "tokens", vocabulary.n_vocab - 1) for token in tokens)
    if n_prompt < 1 or written(vocabulary, ids, special=True) != entry.get("written"):
        raise TextError(
            f"{where}: its tokens do not say in this vocabulary what was said: they are damaged, "
            "or of another one; let the reference answer anew"
        )
    numbers = {name: value for name, value in sampling.items() if isinstance(value, int | float)}
    text = replace(text, name=str(entry.get("id") or text.name))
    return Answer(text, ids, n_prompt, model, seed, numbers)


def _count(value: Any, where: str, key: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise TextError(f'{where}: "{key}" has no whole number from 0 to {most} where it has to')
    return value
