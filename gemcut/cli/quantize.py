"""`gemcut quantize`."""

from collections import Counter
from pathlib import Path
from typing import Any

import click

from gemcut.cli import common
from gemcut.cli.common import (
    FILE,
    SIZE,
    as_json,
    bar,
    dry_run,
    output_options,
    print_json,
    say,
    source_options,
    threads,
    written,
)
from gemcut.plan import Plan


@click.command("quantize")
@source_options
@output_options
@click.option("--type", "kind", help="a mixture of llama.cpp (Q4_K_M, ...) or a ggml type (q4_k)")
@click.option("--size", type=SIZE, help="the finished file is never larger (14G, 5M, bytes)")
@click.option("--bpw", type=click.FloatRange(min=0, min_open=True), help="bits per weight, at most")
@click.option("--plan", "plan_file", type=FILE, help="a plan.json made before")
@click.option(
    "--pure", is_flag=True, help="--type is a bare ggml type, even if a mixture has its name"
)
@click.option(
    "--fallback", is_flag=True, help="a bare type may be replaced where rows do not fit it"
)
@click.option("--imatrix", type=FILE, help="an importance matrix (GGUF or .dat)")
@click.option("--save-plan", type=FILE, help="write the plan here, even with --dry-run")
@common.frugal
@threads
@dry_run
@as_json
def command(
    source: str,
    output: Path,
    split_size: int | None,
    restart: bool,
    kind: str | None,
    size: int | None,
    bpw: float | None,
    plan_file: Path | None,
    pure: bool,
    fallback: bool,
    imatrix: Path | None,
    save_plan: Path | None,
    frugal: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Cut SRC (a checkpoint's folder, a Hub id, or a GGUF) and write it as a GGUF.

    Say exactly one of --type, --size, --bpw and --plan. No 16-bit file is made in between.
    """
    given = [value for value in (kind, size, bpw, plan_file) if value is not None]
    if len(given) != 1:
        raise click.UsageError("say exactly one of --type, --size, --bpw and --plan")
    if (pure or fallback) and kind is None:
        raise click.UsageError("--pure and --fallback go with --type")
    common.check_outputs([output, save_plan], [imatrix, plan_file])
    from gemcut import api

    scratch = common.scratch(output, frugal)
    model = api.open_source(source, scratch=scratch, fetched=common.downloads(), **reading)
    for note in model.notes:
        say(note)
    read = Plan.read(plan_file) if plan_file else None
    importance = api.load_importance(imatrix, model)
    plan = api.make_plan(model, api.Target(kind, pure, fallback, size, bpw, read), importance)
    files = api.planned_files(model, plan, output, split_size)
    common.check_outputs([*files, save_plan], [imatrix, plan_file])
    for line in _described(plan):
        say(line)
    if save_plan:
        api.check_output(model, save_plan)
        plan.write(save_plan)
    if not dry_run:
        with bar("quantizing", model.weights) as progress:
            target = api.Target(plan=plan)
            api.quantize_model(
                model, output, target, importance, threads, progress, split_size, restart, tell=say
            )
    if as_json:
        result = {"files": [str(path) for path in files], "size": sum(files.values())}
        print_json({"output": str(output), "bpw": plan.bpw, "plan": plan.to_dict()} | result)
    else:
        say(f"{written(files, dry_run)}, {plan.bpw:.2f} bits per weight")


def _described(plan: Plan) -> list[str]:
    """Types per role, then every tensor that did not get the type it was meant to have."""
    from gemcut.quantize.roles import role_of

    roles: dict[str, Counter[str]] = {}
    for name, entry in plan.tensors.items():
        if entry.type != "f32":
            roles.setdefault(role_of(name).name, Counter())[entry.type] += 1
    lines = [
        f"{role:18}" + ", ".join(f"{count} x {kind}" for kind, count in counts.most_common())
        for role, counts in roles.items()
    ]
    replaced = Counter((e.wanted, e.type) for e in plan.fallbacks.values())
    for (wanted, got), count in replaced.items():
        names = [n for n, e in plan.fallbacks.items() if (e.wanted, e.type) == (wanted, got)]
        lines.append(f"{wanted} does not fit {count} tensors, which get {got}: {', '.join(names)}")
    return lines
