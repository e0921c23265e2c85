"""The `archer` command. Heavy imports wait until a command needs them, so --help is immediate.

A mistake of the user's ends in one line on standard error and exit code 2. Exit code 0 means that
what was asked for was done; 130 and 143 that a run was interrupted and can be continued.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archer.terminal import Terminal

USER_MISTAKE = 2
STOPPED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command, and returns the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:  # argparse takes no section.key=value behind an option
        strange = [word for word in rest if word.startswith("-") or "=" not in word]
        if strange or not hasattr(options, "overrides"):
            parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
        options.overrides += rest
    from archer.terminal import Terminal

    terminal = Terminal(quiet=getattr(options, "quiet", False))
    command: Callable[[argparse.Namespace, Terminal], int] = options.command
    try:
        return command(options, terminal)
    except ValueError as error:
        return _fail(str(error), USER_MISTAKE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = error.filename or "the run folder"
            cure = "free some space and give the same command again; what was written is intact"
            return _fail(f"the disk is full ({place}): {cure}", USER_MISTAKE)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _fail(f"{error.filename}: {error.strerror}; give another folder", USER_MISTAKE)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except KeyboardInterrupt:
        return _fail("stopped at once; the same command continues from the newest checkpoint", 130)
    except RuntimeError as error:
        if type(error).__name__ in ("TooManyErrors", "NonFiniteGradients"):
            return _fail(str(error), STOPPED)
        raise


def _fail(message: str, code: int) -> int:
    print("archer: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="archer",
        description="Train language models to reason, with reinforcement learning from verifiable "
        "rewards.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=_version)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def add(name: str, command: Callable[..., int], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        made.set_defaults(command=command)
        made.add_argument("--quiet", action="store_true", help="print results only")
        return made

    def add_recipe(made: argparse.ArgumentParser) -> None:
        made.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file")
        made.add_argument(
            "overrides", nargs="*", metavar="section.key=value", help="knobs laid over the recipe"
        )

    made = add("train", _train, "train by a recipe; goes on by itself where a run folder stands")
    add_recipe(made)
    made.add_argument("--run", type=Path, metavar="DIR", help="run folder (runs/<recipe>)")
    made.add_argument(
        "--fork",
        type=Path,
        metavar="NEWDIR",
        help="continue the newest checkpoint of --run in a new folder, with changed knobs",
    )

    made = add("plan", _plan, "say what a recipe would run, without loading weights")
    add_recipe(made)

    made = add("prepare", _prepare, "turn raw data into a checked problem file with a card")
    made.add_argument("source", metavar="SOURCE", help="a file, or a generated task by name")
    made.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--limit", type=int, metavar="N", help="take at most so many")
    made.add_argument("--seed", type=int, default=0, help="of generated tasks")
    made.add_argument(
        "--arg", action="append", default=[], metavar="KEY=VALUE", help="of a generated task"
    )

    made = add("grade", _grade, "verify stored responses: a problem a line, with its response")
    made.add_argument("file", type=Path, metavar="FILE.jsonl")
    made.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--answer-pattern", default="box", help="box, number, or a regex")
    made.add_argument("--workers", type=int, default=0, help="processes (0: one per core)")
    made.add_argument("--cpu-seconds", type=float, default=5.0, help="that a verdict may take")

    made = add("eval", _eval, "score a model on a problem file: avg@k, pass@k, intervals")
    made.add_argument("model", metavar="MODEL", help="hub name, folder, or a run's checkpoint")
    made.add_argument("--problems", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--samples", type=int, default=1, metavar="K", help="completions per problem")
    made.add_argument("--max-tokens", type=int, default=512, help="longest completion")
    made.add_argument("--temperature", type=float, default=1.0)
    made.add_argument("--top-p", type=float, default=1.0)
    made.add_argument("--k", type=int, action="append", default=[], help="report pass@k for this k")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--system", help="system message")
    made.add_argument("--suffix", default="", help="appended to every prompt")
    made.add_argument("--template", default="model", help="model, raw, or a Jinja file")
    made.add_argument("--answer-pattern", default="box", help="box, number, or a regex")
    made.add_argument("--out", type=Path, metavar="FILE.json", help="result; responses beside it")

    made = add("export", _export, "write a checkpoint as a Hugging Face folder, and check it")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="or a run folder")
    made.add_argument("out", type=Path, metavar="OUT")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")

    made = add("doctor", _doctor, "say what this machine can do, and the cure for what is missing")
    return parser


def _version(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer import __version__

    if not options.version:
        _parser().print_help()
        return USER_MISTAKE
    terminal.result(f"archer {__version__}")
    return 0


def _train(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.config import load_config

    config = load_config(options.recipe, options.overrides)
    folder = options.run or Path("runs") / options.recipe.stem
    from archer.summary import summary
    from archer.train import train

    trained = train(config, folder, terminal, fork=options.fork)
    if trained.interrupted and trained.state.step < config.train.steps:
        terminal.result(f"stopped after step {trained.state.step}; the same command goes on")
        return 130
    terminal.result(summary(trained.folder))
    return 0


def _plan(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.config import load_config
    from archer.plan import plan

    terminal.result(plan(load_config(options.recipe, options.overrides)))
    return 0


def _prepare(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.prepare import prepare, read_arguments

    arguments = read_arguments(options.arg)
    with terminal.bar("prepare", options.limit or 0) as advance:
        prepared = prepare(
            options.source,
            options.out,
            limit=options.limit,
            seed=options.seed,
            args=arguments,
            progress=lambda done: advance(done, 0),
        )
    terminal.result(prepared.describe())
    return 0


def _grade(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.grade import grade

    terminal.result(
        grade(
            options.file,
            options.out,
            terminal,
            workers=options.workers,
            cpu_seconds=options.cpu_seconds,
            answer_pattern=options.answer_pattern,
        )
    )
    return 0


def _eval(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.evaluate_model import evaluate_model

    settings: dict[str, Any] = vars(options)
    terminal.result(evaluate_model(settings, terminal))
    return 0


def _export(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.export import export

    terminal.result(export(options.checkpoint, options.out, dtype=options.dtype, terminal=terminal))
    return 0


def _doctor(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.doctor import doctor

    terminal.result(doctor())
    return 0


if __name__ == "__main__":
    sys.exit(main())
