"""The command line: verbs and flags from `cli_flags`, every mistake one line, exit codes.

    0  answered, or it fits         3  it does not fit, or is above --fail-over
    1  an error of rigsize itself   4  measured outside the predicted band
    2  bad usage or bad input       5  hardware or network is missing

The answer goes to stdout, progress and warnings to stderr. Neither torch nor transformers nor
rich is imported here.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from rigsize import __version__
from rigsize.cli_flags import ARGUMENTS, VERBS, VERBS_LATER, Flag
from rigsize.errors import SizingError, SpecError, UnsupportedCombination, nearest
from rigsize.quiet import hush

__all__ = ["main", "run"]

INTERNAL, INTERRUPTED = 1, 130
_ABOUT = {
    "estimate": "The GPU memory a run will really take, and whether it fits.",
    "compare": "What other estimators say of the same run, term by term, beside ours.",
    "plan": "The cheapest, fastest and smallest machines for a run, and why not the others.",
    "table": "The seed article's tables, predicted beside published.",
    "measure": "Run it for real and print measured beside predicted.",
    "train": "Train it for real: text in, model out, prediction beside measurement.",
    "data": "How long the texts are; or obtain the demonstration's texts and model.",
    "validate": "Judge every published case and Record; write the validation page.",
    "gpus": "The cards that --gpus takes, one with its sources, or those of this machine.",
    "offers": "What machines cost to rent, cheapest first, each price with its date.",
    "records": "What was measured here: list, show, export.",
    "calibrate": "Measure this machine once, in two minutes: times of its GPU use it.",
    "emit": "The files that launch it: torchrun, accelerate, DeepSpeed, SLURM, our own.",
}
_HELP = """What GPU memory a language-model run will really take.

Traced from the real model, without a GPU, with every byte explained.
"""
_EPILOG = """\b
Exit codes:
  0  answered, or it fits         3  it does not fit, or is above --fail-over
  1  an error of rigsize itself   4  measured outside the predicted band
  2  bad usage or bad input       5  hardware or network is missing

\b
Examples:
  rigsize estimate xlm-roberta-large --gpus A100-40GB --batch-size 16 --max-length 128
  rigsize estimate ./my-model --task causal-lm --precision bf16 --gpus H100 --explain
"""
# From the public name: its module moved between versions of typer.
_UsageError: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """One command; returns its exit code and never raises on bad input."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    as_json = "--json" in arguments
    hush()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except SizingError as error:
        return _refuse(error, as_json)
    except _UsageError as error:
        return _refuse(_from_usage(error, arguments), as_json)
    except BrokenPipeError:
        # The reader left (`| head`): nothing more to say, and the flush at exit must not say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted("before it began", None)
    except Exception as error:
        return _internal(error, arguments, as_json)
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    verb = next((a for a in arguments if not a.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        raise _no_verb(verb)
    if verb is not None:
        _check_switches(verb, arguments)
    command = typer.main.get_command(_app(verb))
    code = command.main(list(arguments), prog_name="rigsize", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _no_verb(verb: str) -> SizingError:
    if verb in VERBS_LATER:
        return UnsupportedCombination("verb", verb, "not answered yet", allowed=VERBS)
    return SpecError("verb", verb, "no such verb", allowed=VERBS, nearest=nearest(verb, VERBS))


def _check_switches(verb: str, arguments: Sequence[str]) -> None:
    """A switch that is on and off; typer would take the last without a word."""
    given = {argument.replace("_", "-") for argument in arguments}
    for flag in VERBS[verb]:
        if flag.switch and len(given & set(flag.options)) > 1:
            both = " ".join(flag.options)
            raise UnsupportedCombination(flag.name, both, "on and off", hint="give one of the two")


# -- errors -------------------------------------------------------------------------------------


def _refuse(error: SizingError, as_json: bool) -> int:
    if as_json:
        from rigsize.report.document import error_document, render

        print(render(error_document(error)))
    else:
        print(f"rigsize: {error}", file=sys.stderr)
    return error.exit_code


def _from_usage(error: Any, arguments: Sequence[str]) -> SizingError:
    """Typer's own complaint as one line of ours."""
    problem = " ".join(error.format_message().split()).rstrip(".")
    option = getattr(error, "option_name", None)
    if option is None:
        return SpecError("usage", shlex.join(arguments), problem, hint="see rigsize --help")
    field = str(option).lstrip("-")
    if not hasattr(error, "possibilities"):
        return SpecError(field, None, problem)
    possible = error.possibilities or ()
    verb = next((a for a in arguments if a in VERBS), "")
    return SpecError(
        field,
        option,
        "no such option",
        nearest=sorted(possible)[0] if possible else None,
        hint=f"see rigsize {verb} --help" if verb else "see rigsize --help",
    )


def _interrupted(what: str, model: object) -> int:
    print(f"rigsize: interrupted: {what}{f' {model}' if model else ''}", file=sys.stderr)
    return INTERRUPTED


def _internal(error: Exception, arguments: Sequence[str], as_json: bool) -> int:
    """A mistake of ours: one line and how to report it; the traceback only when asked for."""
    if os.environ.get("RIGSIZE_DEBUG") == "1":
        raise error
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    command = shlex.join(["rigsize", *arguments])
    how = f"please report it with its traceback: RIGSIZE_DEBUG=1 {command}"
    if as_json:
        from rigsize.report.document import render

        nothing: dict[str, Any] = {"field": None, "value": None, "allowed": [], "nearest": None}
        message = f"internal error ({text}); {how}"
        print(render({"error": {"kind": "internal", **nothing, "message": message}}))
    else:
        print(f"rigsize: internal error ({text}); {how}", file=sys.stderr)
    return INTERNAL


# -- typer --------------------------------------------------------------------------------------


def _app(verb: str | None) -> typer.Typer:
    """All verbs by name; the flags of the one that is called, or of none for the help."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
        help=_HELP,
        epilog=_EPILOG,
        # accelerate's spelling is understood too: --batch_size.
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": lambda token: token.replace("_", "-"),
        },
    )
    app.callback()(_callback)
    for name in VERBS:
        # no_args_is_help must stay off: `estimate --spec FILE` has no other argument.
        app.command(name, help=_ABOUT[name])(_command(name, VERBS[name] if name == verb else ()))
    return app


def _callback(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        print(f"rigsize {__version__}")
        raise typer.Exit(0)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _command(verb: str, flags: Sequence[Flag]) -> Callable[..., int]:
    """A function with one parameter a flag, as typer reads it."""

    def command(**given: str | bool | None) -> int:
        from rigsize import cli_verbs  # late: `--help` needs none of it
        from rigsize.hardware.accelerators import take_accelerators

        try:
            return cli_verbs.VERBS[verb]({k: v for k, v in given.items() if v is not None})
        except KeyboardInterrupt:  # typer would make it an exit code without a word
            return _interrupted(verb, given.get("model"))
        finally:
            take_accelerators(None)

    parameters = [_parameter(flag) for flag in flags]
    parameters[:0] = [_argument(flag) for flag in ARGUMENTS.get(verb, ())]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _argument(flag: Flag) -> inspect.Parameter:
    metavar = flag.values if flag.values.isupper() else f"{{{flag.values}}}"
    info = typer.Argument(None, metavar=metavar, help=flag.help, show_default=False)
    return _keyword(flag.key, str | None, info)


def _parameter(flag: Flag) -> inspect.Parameter:
    names = "/".join(flag.options)
    common: Mapping[str, Any] = {"help": flag.help, "hidden": flag.later, "show_default": False}
    if flag.switch:
        return _keyword(flag.key, bool | None, typer.Option(None, names, **common))
    info = typer.Option(None, names, metavar=flag.values, **common)
    return _keyword(flag.key, str | None, info)


def _keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


if __name__ == "__main__":
    main()
