"""Texts with personal data planted in them, and texts that only look as if they had some."""

from __future__ import annotations

import json
import random
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bench.pii_values import LOCALES, Values
from kvquant.shadow.pii import Sanitizer
from kvquant.shadow.pii.finding import RANK

KINDS = tuple(RANK)


@dataclass(frozen=True)
class Planted:
    """A text, and where what stands in it."""

    text: str
    spans: tuple[tuple[int, int, str], ...]


class _Writer:
    def __init__(self) -> None:
        self.text = ""
        self.spans: list[tuple[int, int, str]] = []

    def plain(self, text: str) -> None:
        self.text += text

    def planted(self, kind: str, value: str, phrase: str) -> None:
        before, _, after = phrase.partition("{}")
        self.text += before
        self.spans.append((len(self.text), len(self.text) + len(value), kind))
        self.text += value + after


def planted(seed: int, texts: int) -> Iterator[Planted]:
    """Draw texts for every locale: chats, e-mails, arguments of tools as JSON, and code."""
    values = Values(seed)
    rng = values.rng
    for locale in LOCALES:
        fake = values.fakes[locale]
        for index in range(texts):
            writer = _Writer()
            kinds = rng.choices(KINDS, k=rng.randint(2, 6))
            shape = ("chat", "mail", "json", "code")[index % 4]
            if shape == "mail":
                writer.plain(f"Subject: {fake.sentence()}\n\n{fake.paragraph()}\n")
            elif shape == "json":
                writer.plain("{")
            for number, kind in enumerate(kinds):
                value, phrase = values.draw(kind, locale)
                if shape == "json":
                    # In JSON the key says what the value is, and line ends are escaped.
                    value = json.dumps(value, ensure_ascii=False)[1:-1]
                    key = phrase.partition("{}")[0].strip(" :=\"'\n") or f"{kind.lower()}_{number}"
                    separator = ", " if number else ""
                    head = f"{separator}{json.dumps(key, ensure_ascii=False)}: "
                    writer.planted(kind, value, head.replace("{}", "") + '"{}"')
                elif shape == "code":
                    writer.plain(f"{_code(rng)}\nx{number} = foo(bar)  # ")
                    writer.planted(kind, value, phrase)
                    writer.plain("\n")
                else:
                    writer.plain(f"{fake.sentence()} ")
                    writer.planted(kind, value, phrase)
                    writer.plain(rng.choice((" ", "\n", ". ", " - ", ", ")))
            writer.plain("}" if shape == "json" else fake.sentence())
            yield Planted(writer.text, tuple(writer.spans))


def _code(rng: random.Random) -> str:
    n = rng.randint
    return rng.choice(
        (
            f"for i in range({n(0, 9)}, {n(10, 10**6)}): total += a[i] * {rng.random()}",
            f"const v{n(1, 99)} = fetch(`/api/v{n(1, 3)}/items/${{id}}?limit={n(1, 500)}`);",
            f"if (x->len > 0x{n(0, 2**32):08x}) return std::max(a, b);",
            f"SELECT a, b FROM t WHERE id = {n(1, 10**7)} LIMIT {n(1, 1000)};",
            f"@decorator(timeout={n(1, 60)}.{n(0, 9)})",
        )
    )


def hard(seed: int, texts: int) -> Iterator[Planted]:
    """Draw texts in which nothing is personal, and much looks so."""
    rng = random.Random(seed)
    n = rng.randint

    def hexes(length: int) -> str:
        return f"{rng.getrandbits(4 * length):0{length}x}"

    for _ in range(texts):
        lines = (
            f"commit {hexes(40)} (HEAD, tag: v{n(0, 9)}.{n(0, 30)}.{n(0, 99)})",
            f"sha256:{hexes(64)} md5 {hexes(32)}",
            f"request {uuid.UUID(int=rng.getrandbits(128))} took {rng.random() * 100} ms",
            f"{n(1990, 2030)}-{n(1, 12):02d}-{n(1, 28):02d}T{n(0, 23):02d}:{n(0, 59):02d}:"
            f"{n(0, 59):02d}.{n(0, 999999):06d}Z INFO started pid {n(1, 99999)}",
            f"order {n(10**5, 10**10)}, invoice INV-{n(2000, 2030)}-{n(0, 10**6):06d}",
            f"version {n(0, 9)}.{n(0, 20)}.{n(0, 99)}.{n(0, 9)}, build {n(1000, 99999)}",
            f"Chrome/{n(80, 140)}.0.{n(1000, 9999)}.{n(1, 200)} Safari/537.{n(1, 99)}",
            f"[{n(1, 40)}] and [{n(1, 40)}, {n(1, 40)}] hold, see (Smith, {n(1950, 2025)})",
            f"{n(1, 999)},{n(0, 999):03d},{n(0, 999):03d}.{n(0, 99):02d} EUR and ${n(1, 10**6)}",
            " ".join(str(rng.random()) for _ in range(6)),
            " ".join(str(n(0, 10 ** n(1, 5))) for _ in range(12)),
            f"epoch {n(10**9, 2 * 10**9)} / {n(10**12, 2 * 10**12)}",
            f"ISBN 978-{n(0, 9)}-{n(10, 99)}-{n(100000, 999999)}-{n(0, 9)}",
            f"0x{hexes(8)} 0x{hexes(16)} {hexes(12)} {hexes(7)}",
            f"data:image/png;base64,{''.join(rng.choices('ABCDEFabcdef0123456789+/', k=400))}==",
            f"SKU-{n(10**5, 10**9)} x {n(1, 20)}, tracking 1Z{n(10**15, 10**16)}",
            f"mac {':'.join(hexes(2) for _ in range(6))} at {n(0, 23):02d}:{n(0, 59):02d}:00",
            f"y = W{n(1, 9)} @ x.reshape({n(1, 64)}, -1) + b  # a{n(1, 9)}::b{n(1, 9)}::c",
            f"pip install a=={n(1, 2)}.{n(0, 9)}.{n(0, 9)}.{n(0, 9)} b@{n(1, 19)}.{n(0, 9)}.0",
            f"lat {rng.uniform(-90, 90):.6f}, lon {rng.uniform(-180, 180):.6f}",
            f"seen on {n(1, 31)}.{n(1, 12)}.{n(1980, 2030)} and {n(1, 12)}/{n(1, 28)}/{n(10, 30)}",
            f"hosted at example{n(1, 99)}.com, look at docs.example.org or ask @user{n(1, 999)}",
            _code(rng),
        )
        yield Planted("\n".join(rng.sample(lines, 8)), ())


@dataclass
class Tally:
    """How well a kind was found."""

    planted: int = 0
    gone: int = 0
    """Planted values that are covered wholly, under whatever name."""
    named: int = 0
    """Those of them that were given the right name."""
    found: int = 0
    right: int = 0
    """Finds of this kind that lie where a value of this kind was planted."""
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float:
        """Share of the planted values that are gone."""
        return self.gone / self.planted if self.planted else 1.0

    @property
    def precision(self) -> float:
        """Share of the finds that are right."""
        return self.right / self.found if self.found else 1.0


def measured(sanitizer: Sanitizer, texts: Iterable[Planted]) -> dict[str, Tally]:
    """Return how well each kind is found in texts."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for one in texts:
        finds = sanitizer.find(one.text)
        for start, end, kind in one.spans:
            tally = tallies[kind]
            tally.planted += 1
            cover = [f for f in finds if f.start < end and start < f.end]
            left = one.text[start:end]
            for find in cover:
                a, b = max(find.start, start) - start, min(find.end, end) - start
                left = f"{left[:a]}{' ' * (b - a)}{left[b:]}"
            # Brackets and signs around a number are no part of it.
            if any(c.isalnum() for c in left):
                tally.missed.append(one.text[max(0, start - 20) : end + 20])
            else:
                tally.gone += 1
                tally.named += any(f.kind == kind for f in cover)
        for find in finds:
            tally = tallies[find.kind]
            tally.found += 1
            if any(s < find.end and find.start < e and k == find.kind for s, e, k in one.spans):
                tally.right += 1
            else:
                tally.wrong.append(one.text[max(0, find.start - 20) : find.end + 20])
    return tallies
