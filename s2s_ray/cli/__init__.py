"""The `s2s` command: each verb calls one function of the library.

Errors of the library (`s2s_ray.errors`) are printed as one line, and the exit code is that of their class: 2, or 130
for training or a sweep that was stopped with Ctrl-C. Any other exception is a bug and shows its traceback.

The modules of the verbs import the library inside the verbs: `s2s --help` must not wait for PyTorch or Ray.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Annotated, Any

import typer

from s2s_ray.cli import checkpoint, indexing, inference, pipeline, results, service, watching
from s2s_ray.errors import S2SError
from s2s_ray.runtime.cluster import log_plainly
from s2s_ray.runtime.terminal import printable
from s2s_ray.secrets import masked

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Satellite-to-street geo-localisation and view synthesis on Ray.",
)
for verbs in (pipeline.app, indexing.app, results.app, watching.app, inference.app, service.app):
    app.add_typer(verbs)
app.add_typer(checkpoint.app, name="checkpoint")

EXTRAS = {
    "optuna": "tune",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "orjson": "serve",
    "jinja2": "train",
    "matplotlib": "train",
    "tensorboardX": "train",
    "torchmetrics": "train",
}
"""The extra that installs a package which the base lacks, by the name that is imported."""
SHARED = ("ray", "scipy")
"""Packages that several extras install, each the parts that its verbs need."""
VERBS = {"serve": "serve", "tune": "tune", "ablate": "tune"}
"""The extra of a verb; that of the others is `train`."""


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and the presets.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    if isinstance(context.obj, dict):
        context.obj |= {"debug": debug, "verb": context.invoked_subcommand}
    if version:
        from s2s_ray.config import preset_names
        from s2s_ray.version import code_version

        typer.echo(f"s2s-ray {code_version()}; presets: {', '.join(preset_names())}")
        raise typer.Exit


def run(name: str, command: Callable[[], object], options: Mapping[str, Any] | None = None) -> None:
    """Run a command line to the end of the process.

    Args:
        name: of the program, which begins the line of an error.
        command: what to run.
        options: as they are when an error arrives: `debug` shows tracebacks as well, and `verb` is the verb that runs.
    """
    options = {} if options is None else options
    log_plainly()
    sys.excepthook = _print_traceback
    try:
        command()
    except S2SError as error:
        if options.get("debug"):
            print(masked(traceback.format_exc()), end="", file=sys.stderr)
        print(f"{name}: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ImportError as error:
        # Ray's own parts raise an ImportError without a name if what they need is not installed.
        package = (error.name or ("ray" if "ray[" in str(error) else "")).partition(".")[0]
        extra = VERBS.get(options.get("verb") or "", "train") if package in SHARED else EXTRAS.get(package)
        if extra is None or options.get("debug"):
            raise
        print(f"{name}: {package} is not installed: pip install 's2s-ray[{extra}]'", file=sys.stderr)
        sys.exit(2)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug; messages of other libraries may name addresses with passwords."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the `s2s` command."""
    options: dict[str, Any] = {}
    run("s2s", lambda: app(args=arguments, prog_name="s2s", obj=options), options)
