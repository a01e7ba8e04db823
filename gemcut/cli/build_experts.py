"""`gemcut build-experts`."""

import click


@click.command("build-experts")
def command() -> None:
    """Compile the library that runs files with types per expert; needs a C++ compiler, once.

    It goes into your cache folder, and is compiled anew only when gemcut or llama-cpp-python are
    of another version.
    """
    from gemcut.cli.common import say
    from gemcut.runtime.experts.build import build, is_built

    was_there = is_built()
    path = build()
    say(f"{'is there already' if was_there else 'built'}: {path}")
