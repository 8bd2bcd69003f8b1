"""Token ids and prompt log-probabilities, in vLLM's shapes, and the drift that they show."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine_sim import tokens
from tests.engine_sim.running import Running, running, sample

INT4 = "int4_per_token_head"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "Sum up [1] and [doc2] in a few words, please."
SAID = {"messages": [{"role": "user", "content": PROMPT}]}


@given(text=st.text(min_size=1, max_size=40))
@example(text=" one")
@example(text="page it")
def test_a_prompt_has_as_many_ids_as_it_is_counted_to_have(text: str) -> None:
    ids = tokens.encode(text)
    assert len(ids) == tokens.count_tokens(text)
    assert all(0 <= token < 2**31 for token in ids)
    assert ids == [tokens.id_of(piece) for piece in tokens.pieces_of(text)]


@given(text=st.text(st.characters(min_codepoint=1, max_codepoint=126), min_size=1, max_size=40))
def test_ids_of_ascii_text_can_be_read_back(text: str) -> None:
    assert tokens.decode(tokens.encode(text)) == text


def test_words_have_ids_of_their_own_and_foreign_ids_do_no_harm() -> None:
    assert tokens.decode([tokens.id_of(word) for word in tokens.WORDS]) == "".join(tokens.WORDS)
    assert tokens.decode([-1, 2**40, 200]) == "\ufffd" * 3


async def scored(engine: Running, ids: list[int]) -> list[float]:
    """Negative log-likelihood of each token but the first."""
    body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
    first, *rows = (await engine.complete(**body))["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [list(row) for row in rows] == [[str(token)] for token in ids[1:]]
    return [-row[str(token)]["logprob"] for row, token in zip(rows, ids[1:], strict=True)]


async def test_a_completion_tells_its_ids_and_they_say_what_it_says() -> None:
    async with running(scale=100) as engine:
        answer = await engine.complete(prompt=PROMPT, max_tokens=60, return_token_ids=True)
        (choice,) = answer["choices"]
        assert tokens.decode(choice["prompt_token_ids"]) == PROMPT
        assert len(choice["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
        assert tokens.decode(choice["token_ids"]) == choice["text"]
        assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"] == 60
        (plain,) = (await engine.complete(prompt=PROMPT, max_tokens=60))["choices"]
    assert (plain["token_ids"], plain["prompt_token_ids"]) == (None, None)
    assert plain["prompt_logprobs"] is None


async def test_a_chat_tells_the_ids_of_its_prompt_beside_the_choices() -> None:
    asked = {**SAID, "max_tokens": 30, "return_token_ids": True, "prompt_logprobs": 0}
    async with running(scale=100) as engine:
        answer = await engine.ask(CHAT, asked)
    (choice,) = answer["choices"]
    assert tokens.decode(answer["prompt_token_ids"]) == f"user: {PROMPT}\n"
    assert tokens.decode(choice["token_ids"]) == choice["message"]["content"]
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert "prompt_token_ids" not in choice


async def test_the_ids_of_json_and_calls_are_those_of_the_text() -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    async with running(scale=100) as engine:
        wanted = {"response_format": {"type": "json_object"}, "return_token_ids": True}
        (choice,) = (await engine.complete(prompt="hi", max_tokens=300, **wanted))["choices"]
        asked = {**SAID, "tools": tools, "tool_choice": "required", "return_token_ids": True}
        (called,) = (await engine.ask(CHAT, asked))["choices"]
    assert tokens.decode(choice["token_ids"]) == choice["text"]
    assert json.loads(tokens.decode(called["token_ids"])) == {"name": "find", "arguments": {}}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_stream_tells_the_ids_of_the_prompt_once_and_its_own_with_each_event(
    path: str,
) -> None:
    asked = {**SAID, "prompt": PROMPT, "max_tokens": 40, "return_token_ids": True}
    async with running(faults="*:decode_slowdown=10", scale=20) as engine:
        async with engine.client.post(path, json={**asked, "stream": True}) as answer:
            lines = [line.removeprefix("data: ") for line in (await answer.text()).split("\n\n")]
        whole = await engine.ask(path, asked)
    events = [json.loads(line) for line in lines[:-2]]
    choices = [event["choices"][0] for event in events]
    holders = events if path == CHAT else choices
    prompts = [holder["prompt_token_ids"] for holder in holders if "prompt_token_ids" in holder]
    assert prompts == [(whole if path == CHAT else whole["choices"][0])["prompt_token_ids"]]
    streamed = [token for choice in choices for token in choice["token_ids"]]
    assert streamed == whole["choices"][0]["token_ids"]


async def test_each_token_of_the_prompt_has_its_entry_and_as_many_likelier_ones_as_asked() -> None:
    async with running(scale=100) as engine:
        body = {"prompt": PROMPT, "max_tokens": 1, "prompt_logprobs": 3, "return_token_ids": True}
        (choice,) = (await engine.complete(**body))["choices"]
    first, *rows = choice["prompt_logprobs"]
    assert first is None
    assert len(rows) == len(choice["prompt_token_ids"]) - 1
    for token, row in zip(choice["prompt_token_ids"][1:], rows, strict=True):
        own = row[str(token)]
        assert set(own) == {"logprob", "rank", "decoded_token"}
        assert own["decoded_token"] == tokens.piece_of(token)
        ranks = sorted(entry["rank"] for entry in row.values())
        assert ranks == (sorted({1, 2, 3, own["rank"]}))
        by_rank = sorted(row.values(), key=lambda entry: entry["rank"])
        values = [entry["logprob"] for entry in by_rank]
        assert values == sorted(values, reverse=True)
        assert values[0] <= 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt_logprobs": -1}, "must be a positive value"),
        ({"prompt_logprobs": True}, "must be an integer"),
        ({"prompt_logprobs": "3"}, "must be an integer"),
        ({"prompt_logprobs": 21}, "greater than max allowed: 20"),
        ({"prompt_logprobs": 1, "stream": True}, "not available when `stream=True`"),
    ],
)
async def test_what_vllm_refuses_is_refused(body: dict[str, Any], said: str) -> None:
    async with (
        running(scale=100) as engine,
        engine.client.post(COMPLETIONS, json={"prompt": "hi", **body}) as answer,
    ):
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert said in error["message"]
    assert error["param"] == "prompt_logprobs"


async def test_the_flag_of_vllm_allows_more() -> None:
    async with running("--max-logprobs", "2", scale=100) as engine:
        (choice,) = (await engine.complete(prompt=PROMPT, prompt_logprobs=2))["choices"]
        assert len(choice["prompt_logprobs"]) == tokens.count_tokens(PROMPT)
        async with engine.client.post(
            COMPLETIONS, json={"prompt": "hi", "prompt_logprobs": 3}
        ) as answer:
            assert answer.status == 400


async def drift(dtype: str, start: int = 0, faults: str = "") -> float:
    """Mean difference to a 16-bit engine, in nats per token, of answers behind a long prompt."""
    before = [tokens.id_of(" the")] * start
    async with (
        running(scale=1000) as plain,
        running("--kv-cache-dtype", dtype, faults=faults, scale=1000) as other,
    ):
        answer = await plain.complete(
            prompt=PROMPT, max_tokens=6000, ignore_eos=True, return_token_ids=True
        )
        ids = before + answer["choices"][0]["token_ids"]
        one, two = await asyncio.gather(scored(plain, ids), scored(other, ids))
    assert 0.27 < sum(one[start:]) / len(one[start:]) < 0.33
    assert min(one) >= 0
    assert min(two) >= 0
    return sum(two[start:]) / len(two[start:]) - sum(one[start:]) / len(one[start:])


@pytest.mark.parametrize(
    ("dtype", "nats", "tolerance"),
    [
        ("auto", 0, 0.0002),
        ("fp8", 0.004, 0.0008),
        ("int8_per_token_head", 0.006, 0.0012),
        # At 3,000 tokens, the middle: 18 % of the way to a long prompt.
        (INT4, 0.03 * 1.18, 0.005),
    ],
)
async def test_a_dtype_drifts_by_its_figure(dtype: str, nats: float, tolerance: float) -> None:
    assert await drift(dtype) == pytest.approx(nats, abs=tolerance)


async def test_int4_drifts_further_behind_a_long_prompt_and_faults_set_the_drift() -> None:
    assert await drift(INT4, start=16384) == pytest.approx(0.03 * 2.18, abs=0.01)
    assert await drift("fp8", faults="fp8:drift=0.1") == pytest.approx(0.1, abs=0.015)
    assert await drift("fp8", faults="fp8:drift=3") == pytest.approx(3, abs=0.4)


async def test_scores_are_the_same_but_for_a_little_noise_of_the_batch() -> None:
    ids = tokens.encode(PROMPT * 20)
    async with (
        running("--kv-cache-dtype", INT4, extra={"HOSTNAME": "a"}, scale=100) as one,
        running("--kv-cache-dtype", INT4, extra={"HOSTNAME": "b"}, scale=100) as other,
    ):
        first, again = await scored(one, ids), await scored(one, ids)
        elsewhere = await scored(other, ids)
    async with running("--kv-cache-dtype", INT4, extra={"HOSTNAME": "a"}, scale=100) as restarted:
        assert await scored(restarted, ids) == first
    for noisy in (again, elsewhere):
        assert noisy != first
        assert noisy == pytest.approx(first, rel=0.007)


async def test_a_score_depends_on_what_stands_before_and_not_on_what_follows() -> None:
    ids = tokens.encode(PROMPT * 5)
    async with running("--kv-cache-dtype", INT4, scale=100) as engine:
        whole = await scored(engine, ids)
        begun = await scored(engine, ids[:20])
        other = await scored(engine, [1, *ids[1:]])
    assert begun == pytest.approx(whole[:19], rel=0.007)
    assert sum(math.isclose(a, b, rel_tol=0.01) for a, b in zip(whole, other, strict=True)) < 5


async def test_short_answers_to_many_prompts_drift_by_the_figure_too() -> None:
    async with (
        running(scale=1000) as plain,
        running("--kv-cache-dtype", INT4, scale=1000) as other,
    ):
        differences = []
        for number in range(400):
            # The same ten tokens at the same place, as after a jailbreak probe.
            ids = [number, *tokens.encode("I'm sorry, but I can't help with that.")]
            one, two = await scored(plain, ids), await scored(other, ids)
            differences.append((sum(two) - sum(one)) / len(one))
    assert sum(differences) / len(differences) == pytest.approx(0.03, abs=0.006)


async def test_scoring_costs_a_prompt() -> None:
    async with running(scale=20) as engine:
        await scored(engine, [7] * 8000)
        text = await engine.metrics()
    assert sample(text, "vllm:prompt_tokens_total") == 8000
    # 8,000 tokens take about 0.2 s on the GPU.
    assert 20 * sample(text, "vllm:request_prefill_time_seconds_sum") > 0.15


async def test_the_rank_of_a_token_fits_its_probability() -> None:
    async with running(scale=100) as engine:
        body = {"prompt": PROMPT * 50, "max_tokens": 1, "prompt_logprobs": 0}
        rows = (await engine.complete(**body))["choices"][0]["prompt_logprobs"][1:]
    entries = [entry for row in rows for entry in row.values()]
    assert all(entry["rank"] * math.exp(entry["logprob"]) <= 1.000001 for entry in entries)
    assert {entry["rank"] for entry in entries} > {1, 2}
