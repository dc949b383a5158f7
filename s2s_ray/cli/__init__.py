"""The `s2s` command: each verb calls one function of the library.

User errors are printed as one line and end with exit code 2; training or a sweep stopped with Ctrl-C with 130.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from s2s_ray.cli import checkpoint, inference, pipeline, results, service, watching
from s2s_ray.config import preset_names
from s2s_ray.errors import S2SError
from s2s_ray.runtime.cluster import (
    log_plainly,
)
from s2s_ray.version import code_version

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for verbs in (pipeline.app, results.app, watching.app, inference.app, service.app):
    app.add_typer(verbs)
app.add_typer(checkpoint.app, name="checkpoint")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and the presets.")] = False,
) -> None:
    if version:
        typer.echo(f"s2s-ray {code_version()}; presets: {', '.join(preset_names())}")
        raise typer.Exit


def run(name: str, command: Callable[[], object]) -> None:
    """Run a command line to the end of the process: user errors are one line and exit code 2, Ctrl-C is 130."""
    log_plainly()
    try:
        command()
    except S2SError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def main(arguments: list[str] | None = None) -> None:
    """The `s2s` command."""
    run("s2s", lambda: app(args=arguments, prog_name="s2s"))
