"""gemcut as from a shell, in this process: what a command says, and how it is refused."""

from click.testing import CliRunner, Result

from gemcut.cli import main


def run(*arguments: object, stdin: str | bytes | None = None, **environment: str) -> Result:
    """Run gemcut as from a shell; nothing but an exit may escape."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main, words, input=stdin, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def refused(result: Result, code: int = 1) -> str:
    """The one line that a refused command printed."""
    assert result.exit_code == code
    assert result.stdout == ""
    return result.stderr
