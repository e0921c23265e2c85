"""The `archer` command. Heavy imports wait until a command needs them, so --help is immediate.

A mistake of the user's ends in one line on standard error and exit code 2. Exit code 0 means that
what was asked for was done; 130 and 143 that a run was interrupted and can be continued.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from archer.engine.server import Address
    from archer.prepare.filters import Filter
    from archer.terminal import Terminal

USER_MISTAKE = 2
STOPPED = 1
STOPPING = ("EngineLost", "NonFiniteGradients", "ParityBroken", "TooManyErrors")
"""Errors that end a command in one line and are nobody's mistake in a recipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command, and returns the exit code."""
    # Threads that wait give up spinning soon: on a machine that others use too, long spinning took
    # two thirds of the CPU time. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:  # argparse takes no section.key=value behind an option
        strange = [word for word in rest if word.startswith("-") or "=" not in word]
        if strange or not hasattr(options, "overrides"):
            parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
        options.overrides += rest
    from safetensors import SafetensorError

    from archer.terminal import Terminal

    terminal = Terminal(quiet=getattr(options, "quiet", False))
    command: Callable[[argparse.Namespace, Terminal], int] = options.command
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return command(options, terminal)
    except ValueError as error:
        return _fail(str(error), USER_MISTAKE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except (OSError, SafetensorError) as error:
        message = _file_trouble(error)
        if message is None:
            raise
        return _fail(message, USER_MISTAKE)
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT
        return _fail(
            "stopped at once; train, prepare, eval, watch and grade go on by the same command",
            128 + number,
        )
    except RuntimeError as error:
        if type(error).__name__ in STOPPING:
            return _fail(str(error), STOPPED)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a command as Ctrl-C does: what is half done is cleared away."""
    raise KeyboardInterrupt(number)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNUSABLE = (
    errno.EACCES,
    errno.ENOENT,  # as /proc says of every new file
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
)


def _file_trouble(error: Exception) -> str | None:
    """What a person can do about a file that cannot be written; None for a fault of ours."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:  # safetensors says it in words alone
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    place = getattr(error, "filename", None)
    if number in FULL:
        where = f" ({place})" if place else ""
        return (
            f"no more can be written{where}: {os.strerror(number)}; free some space and give the "
            "same command again, what was written is intact"
        )
    if number in UNUSABLE:
        cure = "name" if number == errno.ENAMETOOLONG else "folder"
        return f"{place}: {os.strerror(number)}; give another {cure}"
    return None


def _fail(message: str, code: int) -> int:
    print("archer: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument in one line."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_fail(f"{message}; see {self.prog} --help", USER_MISTAKE))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
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

    def add_sampling(made: argparse.ArgumentParser) -> None:
        made.add_argument("--samples", type=int, metavar="K", help="completions per problem (1)")
        made.add_argument("--max-tokens", type=int, metavar="N", help="longest completion (512)")
        made.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (1)")
        made.add_argument(
            "--top-p", type=float, metavar="P", help="from the likeliest tokens with it (1)"
        )
        made.add_argument(
            "--stop", action="append", metavar="TEXT", help="a text that ends a completion"
        )
        made.add_argument(
            "--k",
            type=int,
            action="append",
            default=[],
            metavar="K",
            help="of pass@K and majority@K",
        )
        made.add_argument("--seed", type=int, metavar="N", help="of the draws (0)")
        made.add_argument("--system", metavar="TEXT", help="system message")
        made.add_argument("--suffix", metavar="TEXT", help="appended to every prompt")
        made.add_argument("--template", metavar="T", help="model, raw, or a Jinja file (model)")
        made.add_argument(
            "--template-arg",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="of the template",
        )
        made.add_argument("--answer-pattern", metavar="P", help="box, number, or a regex (box)")
        made.add_argument(
            "--cpu-seconds",
            type=float,
            metavar="S",
            help="of a verdict, or a test of a program, that has no limit of its own (5)",
        )

    made = add("train", _train, "train by a recipe; goes on by itself where a run folder stands")
    add_recipe(made)
    made.add_argument(
        "--run", type=Path, metavar="DIR", help="run folder, new or to go on with (runs/<recipe>)"
    )
    made.add_argument(
        "--fork",
        type=Path,
        metavar="NEWDIR",
        help="continue the newest checkpoint of --run in a new folder, with changed knobs",
    )

    made = add("plan", _plan, "say what a recipe would run, without loading weights")
    add_recipe(made)
    made.add_argument(
        "--gpus",
        type=int,
        default=0,
        metavar="N",
        help="plan for a cluster run on N GPUs, which need not be here",
    )
    made.add_argument("--gpu", default="h100", metavar="KIND", help="a100, h100 or h200")

    made = add("prepare", _prepare, "turn raw data into a checked problem file with a card")
    made.add_argument(
        "source", metavar="SOURCE", help="a data set of the hub by name, a file, a generated task"
    )
    made.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--limit", type=int, metavar="N", help="take at most so many")
    made.add_argument("--seed", type=int, default=0, help="of generated tasks")
    made.add_argument(
        "--arg", action="append", default=[], metavar="KEY=VALUE", help="of a named source"
    )
    made.add_argument("--revision", help="branch, tag or commit on the hub (main)")
    made.add_argument(
        "--min-tests", type=int, metavar="N", help="leave out programs with fewer tests"
    )
    made.add_argument(
        "--without-known-bad",
        action="store_true",
        help="leave out problems of LiveCodeBench that right programs fail",
    )
    made.add_argument(
        "--max-prompt-tokens", type=int, metavar="N", help="leave out longer prompts; needs --model"
    )
    made.add_argument("--model", help="whose tokens and chat template --max-prompt-tokens counts")
    made.add_argument(
        "--pass-rates",
        type=Path,
        metavar="RESULT.json",
        help="of archer eval on these problems: leave out those it always or never solved",
    )
    made.add_argument(
        "--near-duplicates",
        type=float,
        metavar="SHARE",
        help="leave out what shares so much of its 5-grams with a problem before it, such as 0.7",
    )
    made.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SUITE",
        help="leave out problems that a data set or a file holds too, by their 8-grams",
    )
    made.add_argument(
        "--unchecked", action="store_true", help="do not try references and tests; no sandbox"
    )

    made = add("grade", _grade, "verify stored responses: a problem a line, with its response")
    made.add_argument("file", type=Path, metavar="FILE.jsonl")
    made.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--answer-pattern", default="box", help="box, number, or a regex")
    made.add_argument(
        "--liberty",
        action="append",
        default=[],
        metavar="NAME",
        help="what mathematical answers may differ in: percent, order or units (none)",
    )
    made.add_argument("--workers", type=int, default=0, help="processes (0: one per core)")
    made.add_argument("--cpu-seconds", type=float, default=5.0, help="that a verdict may take")
    made.add_argument("--memory-mb", type=int, default=1024, help="that a verdict may take")
    made.add_argument("--max-tests", type=int, default=0, help="of each program (0: all)")
    made.add_argument("--partial", action="store_true", help="score programs by tests passed")
    made.add_argument("--sandbox", default="auto", help="auto, full, restricted, or weak")

    made = add("convert", _convert, "responses to or from LiveCodeBench's official runner")
    made.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="rows as grade takes them (.jsonl), or what the runner wrote (.json)",
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="what the runner reads (.json), or rows for grade (.jsonl)",
    )
    made.add_argument(
        "--problems",
        type=Path,
        metavar="FILE.jsonl",
        help="prepared, with the tests that what the runner wrote has not",
    )

    made = add("eval", _eval, "score a model on a problem file, or compare two such results")
    made.description = (
        "Score a model on a problem file, or compare two such results. What is not given is as the "
        "run or the export was trained; the values in brackets stand for models that were not "
        "trained here."
    )
    made.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="hub name, folder, .gguf file, smollm2, an export, a run or one of its checkpoints",
    )
    made.add_argument(
        "--problems", type=Path, metavar="FILE.jsonl", help="(the run's own evaluation problems)"
    )
    made.add_argument(
        "--suite",
        metavar="NAME",
        help="problems, prepared from the hub, and settings of a paper or an official runner, over "
        "which goes what else is given; archer eval --suite list shows them",
    )
    add_sampling(made)
    made.add_argument(
        "--out", type=Path, metavar="FILE.json", help="result; responses go beside it (evals/...)"
    )
    made.add_argument(
        "--server",
        metavar="URL",
        help="have an OpenAI-compatible server answer, such as vLLM at http://localhost:8000/v1; "
        "prompts are made here, with the tokenizer and the recipe of MODEL",
    )
    made.add_argument(
        "--server-model", metavar="NAME", help="on the server (MODEL, or the only one there)"
    )
    made.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="send messages, which the server renders: no tokenizer, MODEL is the server's name",
    )
    made.add_argument(
        "--concurrency", type=int, metavar="N", help="requests to the server at a time (32)"
    )
    made.add_argument(
        "--vllm",
        type=float,
        nargs="?",
        const=0.9,
        metavar="SHARE",
        help="sample with vLLM, in so much of the device's memory (0.9)",
    )
    made.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="say by how much B is better than A, problem by problem; takes no other argument",
    )

    made = add("watch", _watch, "score each checkpoint of a run once, as it appears")
    made.description = (
        "Score each checkpoint of a run once, as it appears, until the run is finished. Any number "
        "of watchers share a folder; the same command goes on after a kill. What is not given is "
        "as the run was trained."
    )
    made.add_argument(
        "run", type=Path, metavar="RUN", help="a run, or a folder in which exports appear"
    )
    made.add_argument(
        "--problems",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.jsonl",
        help="to be scored by; several are given one by one",
    )
    made.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="the same, as of archer eval"
    )
    add_sampling(made)
    made.add_argument("--out", type=Path, metavar="DIR", help="results and scores.md (RUN/watch)")
    made.add_argument(
        "--poll", type=float, default=10.0, metavar="S", help="seconds between two looks (10)"
    )
    made.add_argument(
        "--once", action="store_true", help="end when all that is there now is scored"
    )
    made.add_argument(
        "--base", metavar="MODEL", help="config and tokenizer for what many ranks wrote"
    )

    made = add("export", _export, "write a checkpoint as a Hugging Face folder, and check it")
    made.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="its folder, or a run's; or what many ranks wrote: model_world_size_N_rank_R.pt files "
        "of FSDP or a torch.distributed.checkpoint",
    )
    made.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument(
        "--base",
        metavar="MODEL",
        help="config and tokenizer for what many ranks wrote (those in its folder)",
    )
    made.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (5GB)"
    )
    made.add_argument(
        "--push", metavar="NAMESPACE/NAME", help="upload the checked folder to the Hugging Face hub"
    )

    made = add("cluster", _cluster, "start, show or end Ray on the machines of a hostfile")
    made.add_argument("what", choices=("up", "status", "down"))
    made.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="a machine a line, the head first, as ssh knows it; slots=8 behind it limits GPUs",
    )
    made.add_argument(
        "--local",
        action="store_true",
        help="on this machine alone, without ssh; with a hostfile, a node here for each line",
    )
    made.add_argument("--port", type=int, metavar="N", help="of the head (6379)")
    made.add_argument(
        "--wait", type=float, metavar="S", help="seconds until all have to be in (120)"
    )
    made.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable of this shell that the processes there get too",
    )
    made.add_argument(
        "--ssh-config", type=Path, metavar="FILE", help="for ssh, in place of your own"
    )

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
    if trained.stopped_by:
        terminal.result(f"stopped after step {trained.state.step}; the same command goes on")
        return 128 + trained.stopped_by
    terminal.result(summary(trained.folder))
    return 0


def _plan(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.config import load_config
    from archer.plan import plan

    config = load_config(options.recipe, options.overrides)
    terminal.result(plan(config, gpus=options.gpus, gpu=options.gpu))
    return 0


def _prepare(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.prepare import parse_args, prepare

    done = prepare(
        options.source,
        options.out,
        limit=options.limit,
        seed=options.seed,
        args=parse_args(options.arg),
        revision=options.revision,
        filters=_filters(options, terminal),
        near_duplicates=options.near_duplicates,
        check=not options.unchecked,
        terminal=terminal,
    )
    dropped = "".join(f", {count} dropped ({reason})" for reason, count in done.dropped.items())
    terminal.result(f"{done.rows_out} problems from {done.rows_in} rows{dropped}")
    for note in done.notes:
        terminal.result(note)
    terminal.result(f"{done.out}, and its card {done.card}")
    return 0


def _filters(options: argparse.Namespace, terminal: Terminal) -> dict[str, Filter]:
    """What the options leave out, by the words of the card; the cheap ones first."""
    from archer.prepare import filters, grams, problems_of
    from archer.scores import problem_scores

    found: dict[str, Filter] = {}
    if options.without_known_bad:
        found["not known to be bad"] = filters.not_known_bad()
    if (number := options.min_tests) is not None:
        found[f"at least {number} tests"] = filters.at_least_tests(number)
    if (result := options.pass_rates) is not None:
        found[f"solved sometimes in {result.name}"] = filters.solved_sometimes(
            problem_scores(result)
        )
    if (number := options.max_prompt_tokens) is not None:
        if options.model is None:
            raise ValueError(f"--max-prompt-tokens {number} of which model? Give --model too")
        name = f"at most {number} tokens of {options.model}"
        found[name] = filters.at_most_tokens(number, options.model)
    elif options.model is not None:
        raise ValueError(f"--model {options.model} counts for --max-prompt-tokens; give both")
    for suite in options.without:
        name = Path(suite).name.partition(".")[0]
        found[f"not in {name}"] = grams.not_in(name, problems_of(suite, terminal=terminal))
    return found


def _grade(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.grade import grade
    from archer.verify.policy import Policy

    terminal.result(
        grade(
            options.file,
            options.out,
            terminal,
            workers=options.workers,
            policy=Policy(
                answer_pattern=options.answer_pattern,
                liberties=tuple(options.liberty),
                cpu_seconds=options.cpu_seconds,
                memory_mb=options.memory_mb,
                max_tests=options.max_tests,
                partial=options.partial,
                sandbox=options.sandbox,
            ),
        )
    )
    return 0


def _convert(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.livecodebench import convert

    terminal.result(convert(options.file, options.out, options.problems))
    return 0


def _eval(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.compare:
        return _compare(options, terminal)
    if options.suite == "list":
        from archer.suites import listed

        terminal.result(listed())
        return 0
    if options.model is None:
        raise ValueError("eval needs a MODEL, or --compare with two results; see archer eval -h")
    from archer.evaluate_model import evaluate_model

    terminal.result(
        evaluate_model(
            options.model,
            terminal=terminal,
            problems=options.problems,
            suite=options.suite,
            **_sampling(options),
            out=options.out,
            server=_server(options),
            vllm=_vllm(options),
        )
    )
    return 0


def _server(options: argparse.Namespace) -> Address | None:
    """The server that is to answer; None where this process does."""
    from archer.engine.server import CONCURRENCY, Address

    if options.server is None:
        for name in ("server_model", "chat", "concurrency"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for a server; give --server URL too"
                )
        return None
    if options.chat and options.server_model is not None:
        raise ValueError(
            "with --chat MODEL is the name on the server; leave --server-model "
            f"{options.server_model} out, or give it as MODEL"
        )
    concurrency = CONCURRENCY if options.concurrency is None else options.concurrency
    return Address(
        url=options.server,
        model=options.server_model,
        chat=bool(options.chat),
        concurrency=concurrency,
    )


def _vllm(options: argparse.Namespace) -> float | None:
    """The share of memory that vLLM samples in; None where it does not."""
    share: float | None = options.vllm
    if share is None:
        return None
    if options.server is not None:
        raise ValueError("--vllm and --server both sample; leave one out")
    if not 0 < share <= 1:
        raise ValueError(f"--vllm {share:g}: give a share of the memory, above 0 and up to 1")
    return share


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What an evaluation was asked for on the command line."""
    from archer.prepare import parse_args

    return {
        "samples": options.samples,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "stop": options.stop,
        "ks": options.k,
        "seed": options.seed,
        "system": options.system,
        "suffix": options.suffix,
        "template": options.template,
        "template_args": parse_args(options.template_arg) or None,
        "answer_pattern": options.answer_pattern,
        "cpu_seconds": options.cpu_seconds,
    }


def _watch(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.watch import watch

    watched = watch(
        options.run,
        problems=options.problems,
        suites=options.suite,
        terminal=terminal,
        out=options.out,
        poll=options.poll,
        once=options.once,
        base=options.base,
        **_sampling(options),
    )
    terminal.result(watched.table)
    return STOPPED if watched.failed else 0


def _compare(options: argparse.Namespace, terminal: Terminal) -> int:
    of_both = ("command", "quiet", "version", "compare")
    given = [name for name, value in vars(options).items() if name not in of_both]
    given = [name for name in given if vars(options)[name] not in (None, [])]
    if given:
        raise ValueError(
            f"--compare reads two results and takes no {given[0].replace('_', '-')}; leave one out"
        )
    from archer.compare import compare

    terminal.result(compare(*options.compare))
    return 0


def _export(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.export import export

    terminal.result(
        export(
            options.checkpoint,
            options.out,
            dtype=options.dtype,
            terminal=terminal,
            base=options.base,
            max_shard_size=options.max_shard_size,
            push_to=options.push,
        )
    )
    return 0


def _cluster(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.hostfile is None and not options.local:
        raise ValueError("on which machines? Give --hostfile FILE, or --local for this one")
    from archer.engine.cluster import up as cluster

    if options.what == "up":
        address = cluster.up(
            options.hostfile,
            tell=terminal.say,
            local=options.local,
            port=_port(options.port),
            wait=_wait(options.wait),
            variables=options.env,
            ssh_config=options.ssh_config,
        )
        terminal.result(f"export RAY_ADDRESS={address}")
        return 0
    for name in ("port", "wait", "env", "ssh_config"):
        if getattr(options, name) not in (None, []):
            raise ValueError(f"--{name.replace('_', '-')} is for cluster up; leave it out")
    outcome = (cluster.status if options.what == "status" else cluster.down)(options.hostfile)
    terminal.result(outcome.text)
    return 0 if outcome.whole else STOPPED


def _port(port: int | None) -> int:
    if port is None:
        return 6379
    if not 1024 <= port <= 65535:
        raise ValueError(f"--port {port}: give one from 1024 to 65535")
    return port


def _wait(seconds: float | None) -> float:
    if seconds is None:
        return 120.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--wait {seconds:g}: give a number of seconds above 0")
    return seconds


def _doctor(options: argparse.Namespace, terminal: Terminal) -> int:
    from archer.doctor import doctor

    terminal.result(doctor())
    return 0


if __name__ == "__main__":
    sys.exit(main())
