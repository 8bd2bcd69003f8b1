"""The program that evaluates an example set in a pod: the Job of `spec.evaluation`.

Exit status 0: the verdict, whichever it is, stands in the summary; 1: there is none, and why is the
last line on stderr; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvquant.core.evaluation_summary import TERMINATION_FILE
from kvquant.evaluation.arms import ArmError, arm
from kvquant.evaluation.cells import Margins
from kvquant.evaluation.evaluating import evaluate
from kvquant.evaluation.examples import DatasetError
from kvquant.evaluation.fetching import fetch
from kvquant.evaluation.plan import PATIENCE, Plan, Run
from kvquant.evaluation.progress import Progress
from kvquant.evaluation.reporting import document
from kvquant.evaluation.running import Pace
from kvquant.evaluation.summarizing import summarize, text
from kvquant.shadow import settings
from kvquant.shadow.settings import SettingsError

PROGRESS_SECONDS = 10.0
"""Between two lines of progress in the pod's log."""


def main(words: list[str] | None = None) -> int:
    """Evaluate, write what is to be written, and return the exit status."""
    asked = _arguments(words)
    try:
        run = _run(asked)
        if asked.out is not None:
            _write_report(run, asked.out)
        summary = text(summarize(run.judged))
        target = asked.summary or _termination_file()
        if target is not None:
            target.write_text(summary, encoding="utf-8")
    except (DatasetError, ArmError, SettingsError) as error:
        return _failed(asked, str(error))
    except asyncio.CancelledError:
        return _failed(asked, "it was told to end (SIGTERM) before it had a verdict")
    except OSError as error:
        return _failed(asked, f"cannot write {error.filename}: {error.strerror or error}")
    except Exception as error:
        traceback.print_exc()
        return _failed(asked, f"kvquant is at fault ({type(error).__name__}); see the pod's log")
    sys.stdout.write(f"{run.judged.verdict}: {run.judged.message}\n{summary}\n")
    sys.stdout.flush()
    return 0


def _run(asked: argparse.Namespace) -> Run:
    dataset = fetch(asked.dataset)
    progress = Progress(len(dataset.examples), _print, every=PROGRESS_SECONDS)
    plan = Plan(
        dataset=dataset,
        baseline=arm("baseline", asked.baseline, asked.baseline_model),
        canary=arm("canary", asked.canary, asked.canary_model),
        pace=Pace(
            concurrency=asked.concurrency,
            example_seconds=asked.example_deadline,
            deadline_seconds=asked.deadline,
            noise_percent=asked.noise_percent,
            answer_tokens=asked.answer_tokens,
            seed=asked.seed,
            ignore_load=asked.ignore_load,
        ),
        margins=Margins(asked.margin_percent / 100, asked.drift_percent / 100),
        patience=asked.patience,
        engine_key=settings.engine_key(),
    )
    return asyncio.run(_until_told_to_end(evaluate(plan, progress)))


async def _until_told_to_end(work: Coroutine[Any, Any, Run]) -> Run:
    """Do the work, and stop at SIGTERM, by which a Job that takes too long is ended."""
    task = asyncio.ensure_future(work)
    # Signals come to the main thread only.
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _write_report(run: Run, folder: Path) -> None:
    from kvquant.evaluation.page import html

    told = document(run)
    folder.mkdir(parents=True, exist_ok=True)
    report = told.model_dump_json(by_alias=True, indent=2)
    (folder / "report.json").write_text(report + "\n", encoding="utf-8")
    (folder / "report.html").write_text(html(told), encoding="utf-8")


def _failed(asked: argparse.Namespace, sentence: str) -> int:
    """Say why there is no verdict, also where Kubernetes keeps the last words; return 1."""
    sys.stdout.flush()
    sys.stderr.write(f"error: {sentence}\n")
    target = asked.summary or _termination_file()
    if target is not None:
        with suppress(OSError):
            target.write_text(f"error: {sentence}"[:4000], encoding="utf-8", errors="replace")
    return 1


def _termination_file() -> Path | None:
    path = Path(TERMINATION_FILE)
    return path if path.is_file() and os.access(path, os.W_OK) else None


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kvquant.evaluation",
        description="Ask two arms the examples of a set, and say whether the canary's answers are "
        "as good as the baseline's.",
    )
    pace, margins = Pace(), Margins()
    place = "base URL, or HOST:PORT of a headless Service, whose pods are asked in turn"
    parser.add_argument("--dataset", required=True, help="path, file://, s3:// or gs://")
    parser.add_argument("--baseline", required=True, metavar="URL", help=place)
    parser.add_argument("--canary", required=True, metavar="URL", help=place)
    parser.add_argument("--baseline-model", metavar="NAME", help="in place of the examples' own")
    parser.add_argument("--canary-model", metavar="NAME", help="in place of the examples' own")
    parser.add_argument("--concurrency", type=_count(1, 256), default=pace.concurrency)
    parser.add_argument(
        "--margin-percent", type=_number(0.1, 100), default=100 * margins.answers, metavar="NUMBER"
    )
    parser.add_argument(
        "--drift-percent", type=_number(0.1, 100), default=100 * margins.drift, metavar="NUMBER"
    )
    parser.add_argument("--noise-percent", type=_count(0, 100), default=pace.noise_percent)
    parser.add_argument("--answer-tokens", type=_count(1, 65536), default=pace.answer_tokens)
    parser.add_argument("--seed", type=int, default=pace.seed)
    parser.add_argument(
        "--ignore-load",
        action="store_true",
        help="ask also while the baseline has requests waiting, or a KV cache over 80 %% full",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for report.json, report.html")
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help=f"default: {TERMINATION_FILE} where it is"
    )
    seconds = _number(0.1, 7 * 24 * 3600)
    parser.add_argument(
        "--deadline",
        type=seconds,
        default=pace.deadline_seconds,
        metavar="SECONDS",
        help="for the whole set; what is not asked by then counts as unanswered",
    )
    parser.add_argument(
        "--example-deadline", type=seconds, default=pace.example_seconds, metavar="SECONDS"
    )
    parser.add_argument(
        "--patience",
        type=seconds,
        default=PATIENCE,
        metavar="SECONDS",
        help="to wait for an arm that does not answer yet",
    )
    return parser.parse_args(words)


def _count(least: int, most: int) -> Callable[[str], int]:
    def read(word: str) -> int:
        value = int(word)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
        return value

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(word: str) -> float:
        value = float(word)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{word} is not from {least:g} to {most:g}")
        return value

    return read


if __name__ == "__main__":
    sys.exit(main())
