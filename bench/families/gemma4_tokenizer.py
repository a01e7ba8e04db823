"""Cut the demo's tokenizer to its first tokens, for small recordings.

    python bench/families/gemma4_tokenizer.py tests/fixtures/tokenizers/gemma4

Special tokens, bytes and characters come first there, and every merge's parts before the merge, so
what is left is a tokenizer of the same kind.
"""

import json
import shutil
import sys
from pathlib import Path

import gemcut

DONOR = Path(gemcut.__file__).parent / "demo" / "checkpoint"
TOKENS = 704


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        shutil.copyfile(DONOR / name, folder / name)
    tokenizer = json.loads((DONOR / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {key: number for key, number in model["vocab"].items() if number < TOKENS}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    text = json.dumps(tokenizer, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
