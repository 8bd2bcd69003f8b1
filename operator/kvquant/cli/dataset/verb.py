"""The verbs `dataset build` and `dataset import`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvquant.cli.errors import Failure
from kvquant.cli.files import write_whole
from kvquant.cli.session import Verb, VerbGroup

if TYPE_CHECKING:
    from kvquant.evaluation.drawing import Drawn
    from kvquant.evaluation.examples import Example

FORMATS = ("auto", "openai-chat", "openai-batch", "sharegpt", "prompts")

_OUTPUT = click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.",
)


@click.group(
    cls=VerbGroup,
    epilog="""
    {program} dataset build --log s3://logs/shadow/inference/llama-int8 -o set.jsonl
    {program} dataset import requests.jsonl -o set.jsonl
    """,
)
def dataset() -> None:
    """Make example sets: prompts to be asked of both arms.

    A set is JSON Lines, {"id", "endpoint", "body", "expect"?}: docs/evaluation.md. None of these
    verbs needs a cluster.
    """


@dataset.command(
    cls=Verb,
    epilog="""
    {program} dataset build --log s3://logs/shadow/inference/llama-int8 -o set.jsonl
    {program} dataset build --log /var/log/kvquant --size 2000 --seed 7 -o set.jsonl
    """,
)
@click.option(
    "--log",
    "url",
    metavar="URL",
    required=True,
    help="Folder of the shadow log, of one rollout or of several: a path, file://, s3:// or gs://. "
    "Credentials come from the usual environment variables, such as AWS_ACCESS_KEY_ID and "
    "AWS_ENDPOINT_URL.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1, max=100_000),
    default=1000,
    show_default=True,
    help="Examples at most.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Another one draws another set."
)
@_OUTPUT
def build(url: str, size: int, seed: int, output: Path) -> None:
    """Draw a set from the prompts that a shadow service has logged.

    Takes as many of each length and kind as there are, up to equal shares: prompts with numbered
    sources, with tools, that ask for JSON, later turns of a conversation, attempts at a jailbreak,
    and the others. No prompt is taken twice, nor are two that differ in spaces, case or personal
    data only. The same log and seed give the same set.

    The log holds no personal data that its sanitizer knows of; see docs/evaluation.md before you
    pass a set on.
    """
    from kvquant.evaluation.drawing import draw
    from kvquant.evaluation.reading import ShadowLog

    try:
        log = ShadowLog(url)

        def records() -> Iterable[Mapping[str, Any]]:
            return log

        drawn = draw(records, size, seed)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--log") from error
    except OSError as error:
        raise Failure(f"--log: {error}") from error
    if not drawn.examples:
        raise Failure(
            f"--log: none of its {drawn.records} lines is a pair whose prompt the baseline "
            "answered. Let the shadow service compare some first: docs/shadow-log.md"
        )
    _write(output, drawn.examples)
    for text in _told(drawn):
        click.echo(text)
    click.echo(f"Set: {output.resolve()}")


def _told(drawn: Drawn) -> Iterator[str]:
    yield (
        f"{len(drawn.examples)} examples of {sum(drawn.offered.values())} different prompts "
        f"({drawn.records} records, {drawn.duplicates} of them repeated, "
        f"{drawn.unusable} not usable)"
    )
    yield f"  {'length':<14}{'kind':<12}{'taken':>7}{'there':>8}"
    for (bucket, kind), offered in drawn.offered.items():
        yield f"  {bucket:<14}{kind:<12}{drawn.taken[bucket, kind]:>7}{offered:>8}"


@dataset.command(
    name="import",
    cls=Verb,
    epilog="""
    {program} dataset import requests.jsonl -o set.jsonl              # an OpenAI batch file
    {program} dataset import sharegpt.json -o set.jsonl --format sharegpt
    {program} dataset import prompts.txt -o set.jsonl                 # one prompt a line
    """,
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "name",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="What FILE is. auto: told by its first entry.",
)
@_OUTPUT
def bring(file: Path, name: str, output: Path) -> None:
    """Bring prompts of another tool into the format of sets.

    openai-chat: requests or fine-tuning data, {"messages": [...]}. An answer at the end is taken
    away; tool calls in it are expected again. openai-batch: {"custom_id", "url", "body"}. sharegpt:
    {"conversations": [{"from", "value"}]}, up to the last thing that a person said. prompts: a line
    of text, a JSON string, or an object with prompt, text, question or instruction.
    """
    from kvquant.evaluation import importing
    from kvquant.evaluation.examples import DatasetError, unique

    try:
        imported = importing.read(file, name)
    except DatasetError as error:
        raise Failure(str(error)) from error
    examples = list(unique(imported.examples))
    _write(output, examples)
    notes = [f"{len(imported.examples) - len(examples)} repeated"] if imported.examples else []
    if imported.skipped:
        notes.append(f"{imported.skipped} without a prompt")
    click.echo(f"{len(examples)} examples read as {imported.format} ({', '.join(notes)})")
    click.echo(f"Set: {output.resolve()}")


def _write(path: Path, examples: Iterable[Example]) -> None:
    from kvquant.evaluation.examples import line

    write_whole(path, "".join(line(example) for example in examples))
