"""Requests to /v1/responses against the simulated engine: their drift is scored, too."""

from __future__ import annotations

from kvquant.shadow import answers, scoring
from kvquant.shadow.preparing import RESPONSES, replayed
from tests.engine_sim.running import running


async def test_the_answer_to_a_response_can_be_scored_from_its_own_token_ids() -> None:
    async with running("--kv-cache-dtype", "fp8", scale=50) as engine:
        asked = replayed(RESPONSES, {"model": "m", "input": "What is the sky like?"}, 32)
        answer = answers.read(RESPONSES, await engine.ask(RESPONSES, asked))
        assert len(answer.prompt_ids) == answer.prompt_tokens > 0
        assert len(answer.answer_ids) == answer.answer_tokens > 0
        question = scoring.question("m", answer, 4096)
        document = await engine.ask(scoring.PATH, question)
    assert scoring.negative_log_likelihood(document, answer.answer_ids) > 0


async def test_without_raw_messages_it_cannot() -> None:
    async with running(scale=50) as engine:
        asked = {"model": "m", "input": "Hi", "max_output_tokens": 8}
        answer = answers.read(RESPONSES, await engine.ask(RESPONSES, asked))
    assert (answer.prompt_ids, answer.answer_ids) == ((), ())
