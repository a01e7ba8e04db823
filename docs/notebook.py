# %% [markdown]
# # gemcut from Python
#
# All that the command line does is there as functions of `gemcut.api`, with typed results. Nothing
# prints, and nothing touches the network unless a Hub id is given. Paths are text or `Path`, sizes
# bytes or `"12G"`, contexts tokens or `"32k"`. Whatever goes wrong is a `GemcutError`, with the
# message that the command line shows.
#
# Here is the whole way, with the small model that comes with gemcut. This page is made from
# `docs/notebook.py`, which opens as a notebook in editors that know cells; a test runs it.

# %%
from importlib.resources import files

from gemcut import GemcutError, api

checkpoint = str(files("gemcut.demo") / "checkpoint")

# %% [markdown]
# ## What is in it
#
# A source is a checkpoint's folder, a Hub id, or a GGUF.

# %%
found = api.inspect_source(checkpoint)
print(f"{found.family}: {found.weights} weights, {found.active} of them used by a token")
for part in found.parts[:3]:
    print(f"{part.role}: {part.tensors} tensors, {part.size} bytes")

# %% [markdown]
# ## Convert
#
# One file in BF16, to hold the cut one against. Interrupted, the same call goes on where it
# stopped.

# %%
reference = api.convert_checkpoint(checkpoint, "reference.gguf", "bf16")
print(reference.path, reference.size, f"{reference.bpw:.2f} bits per weight")

# %% [markdown]
# ## Plan
#
# What is wanted has the names of the command line's options: `vram`, `ram`, `context`, `size`,
# `min_speed`, and so on (`api.words.Wanted`). What is not said of the machine is this one's; here
# it is another one, by name, so that nothing is measured. All numbers of a plan are predicted.

# %%
plan = api.make_plan(checkpoint, machine="rtx-4070+ddr5-5600", context="8k", size="4.75M")
print(f"{plan.bpw:.2f} bits per weight, KL divergence {plan.predicted['kld']:.4f}")
for place, page in plan.ledger.items():
    weights = sum(size for what, size in page.items() if what.startswith("weights"))
    print(f"{place}: {weights} bytes of weights, {page['free']} bytes free")

# %% [markdown]
# `api.compare_plans` takes the same words and gives the frontier, too; `plan.write("plan.json")`
# keeps a plan.
#
# ## Quantize
#
# By a plan, or by a type: `api.quantize_model(checkpoint, "q4.gguf", "Q4_K_M")`. An importance
# matrix goes in with `imatrix="imatrix.gguf"`.

# %%
cut = api.quantize_model(checkpoint, "small.gguf", plan)
print(cut.path, cut.size, f"{cut.bpw:.2f} bits per weight")

# %% [markdown]
# ## Load and talk
#
# Where tensors go is planned for this machine, within `vram`, `ram` and `context` if they are said.

# %% varies
with api.load(cut.path, context="1k", threads=1, sampling={"temperature": 0.0}) as session:
    answer = session.chat("What does the function dedent do?", max_tokens=24)
    print(answer, f"({answer.finish}, {answer.timing.prompt_tokens} tokens read)")
    for piece in session.stream("And indent?", max_tokens=12):
        print(piece.text, end="|")
    print("\ndef add(a, b):", session.complete("def add(a, b):", max_tokens=12), sep="")

# %% [markdown]
# `session.conversation` has the messages, the system message and the sampling; `session.embed`
# gives vectors, of models made for that.
#
# ## Evaluate
#
# On your own text with `texts="text.txt"`; without, on the built-in one. With so little text the
# interval is wide. Scores are kept in the user's cache, unless `keep=False`.

# %%
report = api.evaluate(
    cut.path, reference.path, context=256, chunks=2, floor=0, routing=0, threads=1, keep=False
)
for row in report.comparisons[0].files:
    assert row.summary and row.summary.kld and row.summary.same_top
    kld, top1 = row.summary.kld, row.summary.same_top
    print(f"{row.column.name}: KL divergence {kld.value:.4f} ± {kld.error:.4f}")
    print(f"the same next token in {top1.value:.0%} of places")

# %% [markdown]
# ## Read numbers
#
# Every result is a frozen dataclass; `to_dict()` gives what `--json` prints.

# %%
print(sorted(report.to_dict()))
print(sorted(cut.to_dict()))

# %% [markdown]
# ## For other programs
#
# A check against llama.cpp's own loader and gguf-py, and what Ollama imports the file by
# ([other programs](running.md#in-other-programs)).

# %%
print(api.check_file(cut.path).standard)
print(api.ollama_modelfile(cut.path))

# %% [markdown]
# ## When it does not go
#
# An error says what, where, wanted and got, and the next step.

# %%
try:
    api.make_plan(checkpoint, size="1M")
except GemcutError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## All verbs
#
# | to | call |
# |---|---|
# | open a source once, for several of these | `open_source` |
# | look into it | `inspect_source`, `families` |
# | write it unquantized | `convert_checkpoint` |
# | collect importance | `collect_importance`, `merge_importance` |
# | measure sensitivity | `measure_sensitivity`, `probing` |
# | choose types and places | `make_plan`, `compare_plans` |
# | write it cut | `quantize_model` |
# | measure, plan and write in one go | `quantize_measured` |
# | hold the result against its source | `validate`, `record` |
# | fetch a finished file from the Hub | `local_gguf` |
# | see how it would run | `prepare` |
# | talk with it | `load` |
# | measure how fast it runs | `measure_speed` |
# | compare files | `evaluate`, `swept` |
# | use it elsewhere | `check_file`, `ollama_modelfile` |
