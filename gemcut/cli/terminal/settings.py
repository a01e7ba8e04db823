"""What can be set of a conversation, by one name each: as an option, with /set, in a saved file."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.titled import titled
from gemcut.errors import GemcutError, UsageError

if TYPE_CHECKING:
    from gemcut.runtime.chat.chat import Chat
    from gemcut.runtime.chat.timing import Timing
    from gemcut.runtime.language.pieces import Piece

_SEED = (1 << 32) - 1
_NONE = ("none", "off", "default")


@dataclass
class Talk:
    """A conversation at the terminal: the chat, and how it is shown."""

    chat: "Chat"
    max_tokens: int | None = None  # of one answer
    raw: bool = False  # text is continued as it is
    hide: bool = False  # thoughts are not shown
    verbose: bool = False  # speed after every answer
    record: Callable[["Timing"], None] = lambda timing: None  # told how long answers took

    def say(self, text: str) -> Iterator["Piece"]:
        """Say something; the answer, piece by piece. Raises as `Chat.send`."""
        say = self.chat.generate if self.raw else self.chat.send
        return say(text, self.max_tokens)


@dataclass(frozen=True)
class Setting:
    """Something that /set can change."""

    help: str
    get: Callable[[Talk], Any]
    put: Callable[[Talk, Any], None]
    parse: Callable[[str], Any]  # of what was typed; ValueError or UsageError


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each number of the sampling, named by its field; None: the file's."""
    options = (
        click.option(f"--{name}", *(["-s"] if name == "seed" else []), field, type=kind, help=text)
        for name, (field, kind, text) in SAMPLING.items()
    )
    return titled("How tokens are drawn", *options)(command)


def change(talk: Talk, name: str, text: str) -> None:
    """Set one thing, as it was typed.

    Raises:
        UsageError: there is no such setting, or it cannot be that.
    """
    setting = find(name)
    try:
        setting.put(talk, setting.parse(text.strip()))
    except (ValueError, click.BadParameter) as error:
        what = error.message if isinstance(error, click.BadParameter) else str(error)
        raise UsageError(f"{name} cannot be {text!r:.40}: {what} ({setting.help})") from error


def find(name: str) -> Setting:
    """The setting of a name, as it is or with underscores. Raises UsageError, with a suggestion."""
    name = name.replace("_", "-").lower()
    name = {"temperature": "temp", "n": "max-tokens"}.get(name, name)
    if name in SETTINGS:
        return SETTINGS[name]
    near = get_close_matches(name, SETTINGS, 1)
    hint = f"did you mean {near[0]}?" if near else f"wanted one of {', '.join(SETTINGS)}"
    raise UsageError(f"there is no setting {name!r:.40}: {hint}")


def values(talk: Talk) -> dict[str, Any]:
    """What everything is set to."""
    return {name: setting.get(talk) for name, setting in SETTINGS.items()}


def restore(talk: Talk, saved: Mapping[str, Any]) -> list[str]:
    """Set what a file says, all of it or nothing; the names that are not known here.

    Raises:
        UsageError, EngineError: something cannot be what the file says.
    """
    before = values(talk)
    try:
        for name in SETTINGS.keys() & saved.keys():
            change(talk, name, written(saved[name]))
    except GemcutError:
        for name, value in before.items():
            SETTINGS[name].put(talk, value)
        raise
    return sorted(saved.keys() - SETTINGS.keys())


def written(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == () or value == []:
        return "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else str(value)


def switch(text: str) -> bool:
    """On or off. Raises ValueError."""
    known = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
    if text.lower() not in known:
        raise ValueError("wanted on or off")
    return known[text.lower()]


def _thinking(text: str) -> bool | None:
    return None if text.lower() in ("default", "none") else switch(text)


def _stops(text: str) -> tuple[str, ...]:
    """None, one text, or several as JSON."""
    if text.lower() in _NONE or not text:
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise ValueError('wanted a text, or several as ["one", "two"]')
    return tuple(found)


def _number(kind: Any, text: str) -> Any:
    return None if text.lower() in _NONE else kind.convert(text, None, None)


def _sampled(field: str, kind: Any, text: str) -> Setting:
    def put(talk: Talk, value: Any) -> None:
        from gemcut.runtime.chat.chat import recommended_sampling

        if value is None and field != "seed":
            value = getattr(recommended_sampling(talk.chat.model), field)
        talk.chat.sampling = replace(talk.chat.sampling, **{field: value})

    return Setting(
        text, lambda talk: getattr(talk.chat.sampling, field), put, partial(_number, kind)
    )


def _held(owner: str, text: str, parse: Callable[[str], Any]) -> Setting:
    """Something that an attribute holds: "hide" of the talk, "chat.think" of its chat."""
    *inner, field = owner.split(".")

    def of(talk: Talk) -> Any:
        return getattr(talk, inner[0]) if inner else talk

    return Setting(
        text,
        lambda talk: getattr(of(talk), field),
        lambda talk, value: setattr(of(talk), field, value),
        parse,
    )


_SHARE, _COUNT = click.FloatRange(0, 1), click.IntRange(min=0)
SAMPLING = {
    "temp": ("temperature", click.FloatRange(min=0), "0 is greedy"),
    "top-k": ("top_k", _COUNT, "draw from so many tokens; 0: all"),
    "top-p": ("top_p", _SHARE, "draw from so much probability"),
    "min-p": ("min_p", _SHARE, "least share of the top's probability"),
    "repeat-penalty": (
        "repeat_penalty",
        click.FloatRange(0, min_open=True),
        "against repetition; 1: none",
    ),
    "repeat-last-n": ("repeat_last_n", _COUNT, "tokens that penalties look back"),
    "presence-penalty": ("presence_penalty", click.FloatRange(-2, 2), "for what was said; 0: none"),
    "frequency-penalty": (
        "frequency_penalty",
        click.FloatRange(-2, 2),
        "for each time it was said; 0: none",
    ),
    "seed": ("seed", click.IntRange(0, _SEED), "default: another one each time"),
}
SETTINGS: dict[str, Setting] = {
    **{name: _sampled(*of) for name, of in SAMPLING.items()},
    "max-tokens": _held("max_tokens", "of one answer", partial(_number, click.IntRange(min=1))),
    "stop": _held("chat.stops", "texts that end an answer", _stops),
    "context-shift": _held(
        "chat.shifts", "when the context is full, go on without the oldest exchanges", switch
    ),
    "think": _held("chat.think", "let the model think first, if it can", _thinking),
    "hide": _held("hide", "do not show thoughts", switch),
    "verbose": _held("verbose", "speed after every answer", switch),
}
