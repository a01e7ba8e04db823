"""Run llama.cpp's converter on a tiny checkpoint: python llama_converter.py TOKENIZER OPTION...

The converter knows a tokenizer by a hash of what it makes of one text, which no tiny one passes;
here it is told the name, the folder's in tests/fixtures/tokenizers. LLAMA_CPP is the folder of
llama.cpp's sources.
"""

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    sources = Path(os.environ["LLAMA_CPP"])
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    kind = sys.argv.pop(1)
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda self, tokenizer: kind
    runpy.run_path(str(sources / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
