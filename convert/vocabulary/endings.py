"""The tokens that end a generation, all of generation_config.json's list.

A GGUF file names one end of text, one of a turn (`eot`) and one of a message (`eom`); llama.cpp
takes others for an ending if it knows their text. What is left of the list gets the free roles.
"""

from collections.abc import Mapping, Sequence

from gemcut.convert.checkpoint import Checkpoint

# Tokens that llama.cpp ends a generation at by their text alone.
KNOWN = frozenset(
    """<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
    <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos>
    <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[""".split()
)


def endings(
    checkpoint: Checkpoint, tokens: Sequence[str], ids: Mapping[str, int]
) -> dict[str, int]:
    """Roles for the endings that llama.cpp would not know of.

    Args:
        tokens: the texts of all tokens.
        ids: roles that are given already.

    Returns:
        Roles -> ids; a file has room for two. Ids beyond the vocabulary are left out.
    """
    listed = checkpoint.json("generation_config.json", {}).get("eos_token_id")
    wanted = listed if isinstance(listed, list) else [listed]
    known = {ids.get(role) for role in ("eos", "eot", "eom")}
    free = [role for role in ("eom", "eot") if role not in ids]
    unknown = [
        number
        for number in dict.fromkeys(n for n in wanted if type(n) is int)
        if 0 <= number < len(tokens) and number not in known and tokens[number] not in KNOWN
    ]
    return dict(zip(free, unknown, strict=False))
