"""How much personal data is found in generated texts, what is taken for it wrongly, and how fast.

Twelve locales of Faker, four shapes of text, and hard negatives. The patterns were tuned on seeds
below 1000; what is reported is drawn with a seed from 1000 on.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import chain

import click
from faker import Faker

from bench.pii_corpus import KINDS, hard, measured, planted
from kvquant.shadow.pii import Sanitizer

SECONDS = 600.0
RECALL, PRECISION = 0.99, 0.95


@click.command(help=__doc__)
@click.option("--texts", default=1200, show_default=True, help="Texts of each locale.")
@click.option("--negatives", default=6000, show_default=True, help="Texts without anything.")
@click.option("--seed", default=1000, show_default=True, help="What the texts are drawn with.")
@click.option("--show", default=0, show_default=True, help="Mistakes shown of each kind.")
def main(texts: int, negatives: int, seed: int, show: int) -> None:
    """Measure and tell."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sanitizer = Sanitizer(b"a key of the bench", seconds=SECONDS)
    corpus = list(chain(planted(seed, texts), hard(seed, negatives)))
    tallies = measured(sanitizer, corpus)
    click.echo("| kind | planted | recall | named right | found | precision |")
    click.echo("|---|--:|--:|--:|--:|--:|")
    short = []
    for kind in KINDS:
        one = tallies[kind]
        named = one.named / one.gone if one.gone else 1.0
        click.echo(
            f"| {kind} | {one.planted} | {one.recall:.4f} | {named:.3f} | {one.found} "
            f"| {one.precision:.4f} |"
        )
        if one.recall < RECALL or one.precision < PRECISION:
            short.append(kind)
        for text in one.missed[:show]:
            click.echo(f"    missed: {text!r}")
        for text in one.wrong[:show]:
            click.echo(f"    wrong: {text!r}")
    everywhere = sum(len(one.text) for one in corpus)
    click.echo(f"\n{len(corpus)} texts, {everywhere / 1e6:.1f} M characters, seed {seed}\n")
    _tell_speed(sanitizer, "".join(one.text + "\n" for one in planted(seed, 200)), seed)
    if short:
        click.echo(f"below recall {RECALL} or precision {PRECISION}: {', '.join(short)}")
        sys.exit(1)


def _tell_speed(sanitizer: Sanitizer, dense: str, seed: int) -> None:
    fake = Faker("en_US")
    fake.seed_instance(seed)
    prose = " ".join(fake.paragraph(8) for _ in range(400))
    usual = []
    for index in range(200):
        usual.append(fake.paragraph(8))
        if index % 2:
            usual.append(f"Write to {fake.email()} or call {fake.phone_number()}.")
    click.echo("| text | 8 KiB, MB/s | 1 MiB, MB/s |")
    click.echo("|---|--:|--:|")
    for name, text in (
        ("prose without a find", prose),
        ("two finds in 150 words", " ".join(usual)),
        ("the corpus above: a find in 20 words", dense),
        ("a table of integers", " ".join(str(i * 7919 % 99991) for i in range(20000))),
    ):
        speeds = [_speed(sanitizer, text, size) for size in (8192, 1 << 20)]
        click.echo(f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} |")


def _speed(sanitizer: Sanitizer, text: str, size: int) -> float:
    whole = (text * (size // len(text) + 1))[:size]
    bytes_once = len(whole.encode())
    times = max(1, (1 << 20) // size // 2)
    begin = time.process_time()
    for _ in range(times):
        sanitizer.text(whole)
    return bytes_once * times / (time.process_time() - begin) / 1e6


if __name__ == "__main__":
    main()
