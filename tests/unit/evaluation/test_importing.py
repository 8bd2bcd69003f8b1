"""Files of other tools, brought into the format of example sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvquant.evaluation import examples, importing
from kvquant.evaluation.examples import DatasetError, Example
from kvquant.evaluation.importing import Imported

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"at":"Rom"}'},
}


def imported(folder: Path, text: str | list[Any], name: str = "auto") -> Imported:
    file = folder / "given"
    lines = text if isinstance(text, str) else "\n".join(json.dumps(entry) for entry in text)
    file.write_text(lines, encoding="utf-8")
    return importing.read(file, name)


def one(found: Imported) -> dict[str, Any]:
    (example,) = found.examples
    fields: dict[str, Any] = json.loads(examples.line(example))
    return fields


def test_a_batch_file_is_what_was_sent(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    entry = {"custom_id": "a-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    found = imported(tmp_path, [entry])
    assert found.format == "openai-batch"
    assert one(found) == {"id": "a-1", "endpoint": "/v1/chat/completions", "body": body}


def test_batch_lines_of_other_endpoints_are_no_prompts(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    whole = {"custom_id": "a", "url": "https://api.example.org/v1/chat/completions", "body": body}
    embedding = {"custom_id": "b", "url": "/v1/embeddings", "body": {"input": "x"}}
    found = imported(tmp_path, [whole, embedding])
    assert ([e.id for e in found.examples], found.skipped) == (["a"], 1)
    with pytest.raises(DatasetError, match=r"line 1: endpoint: .*none of /v1/completions"):
        imported(tmp_path, [{**whole, "url": "/v1/audio"}])


def test_the_last_answer_of_a_chat_is_taken_away_and_its_calls_are_expected(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "Weather in Rome?"}
    entry = {"messages": [asked, {"role": "assistant", "tool_calls": [CALL]}], "tools": TOOLS}
    found = imported(tmp_path, [entry])
    assert found.format == "openai-chat"
    example = one(found)
    assert example["body"] == {"messages": [asked], "tools": TOOLS}
    assert example["expect"] == {"toolCalls": [{"name": "weather", "arguments": {"at": "Rom"}}]}


def test_a_text_answer_is_taken_away_and_not_expected(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    entry = {"messages": [{"role": role, "content": text} for role, text in turns]}
    example = one(imported(tmp_path, [entry]))
    assert [m["content"] for m in example["body"]["messages"]] == ["a", "b", "c"]
    assert "expect" not in example


@pytest.mark.parametrize("as_array", [True, False])
def test_sharegpt_conversations_end_with_what_a_person_said(tmp_path: Path, as_array: bool) -> None:
    turns = [("system", "be brief"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    entry = {"id": "x_0", "conversations": [{"from": f, "value": v} for f, v in turns]}
    empty = {"id": "x_1", "conversations": [{"from": "gpt", "value": "Hello!"}]}
    text = json.dumps([entry, empty], indent=1)
    found = imported(tmp_path, text) if as_array else imported(tmp_path, [entry, empty])
    assert (found.format, found.skipped) == ("sharegpt", 1)
    messages = one(found)["body"]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]


def test_prompts_of_every_spelling(tmp_path: Path) -> None:
    plain = imported(tmp_path, "What is 2+2?\n\nWho was Ada Lovelace?\n")
    assert [e.body["messages"][0]["content"] for e in plain.examples] == [
        "What is 2+2?",
        "Who was Ada Lovelace?",
    ]
    assert plain.examples[0].id != plain.examples[1].id
    strings = imported(tmp_path, ["What is 2+2?", "Who was Ada Lovelace?"])
    assert [e.id for e in strings.examples] == [e.id for e in plain.examples], "ids follow"
    alpaca = imported(tmp_path, [{"instruction": "Add.", "input": "2 and 2", "output": "4"}])
    assert one(alpaca)["body"]["messages"][0]["content"] == "Add.\n\n2 and 2"
    raw = imported(tmp_path, [{"prompt": "Once upon", "max_tokens": 5, "id": 7}])
    assert one(raw) == {
        "id": "7",
        "endpoint": "/v1/completions",
        "body": {"prompt": "Once upon", "max_tokens": 5},
    }


def test_ids_that_come_twice_are_told_apart(tmp_path: Path) -> None:
    found = imported(tmp_path, [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}])
    assert [e.id for e in found.examples] == ["x", "x-2"]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "auto", "there is nothing in it"),
        ('{"a": 1}', "auto", "no known format begins like this. Name it by --format: openai-chat"),
        ('{"id": "1", "endpoint": "/v1/completions", "body": {}}', "auto", "is an example set alr"),
        ('{"messages": [{"role": "user"', "auto", "line 1: it is no JSON document"),
        ('{"prompt": "x"}', "sharegpt", "none of its 1 entries holds a prompt"),
        ('{"conversations": [{"from": "alien", "value": "x"}]}', "auto", "line 1: it is no entry"),
        ('{"messages": "hi"}', "auto", "line 1: it is no entry of the format openai-chat"),
        ("[1, 2]", "prompts", "entry 1: it is no entry of the format prompts"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line_and_the_remedy(
    tmp_path: Path, text: str, name: str, said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        imported(tmp_path, text, name)


def read(folder: Path, *lines: Any) -> list[Example]:
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return examples.read(file)


GOOD = {"id": "1", "endpoint": "/v1/completions", "body": {"prompt": "x"}}


def test_a_set_comes_back_as_it_was_written(tmp_path: Path) -> None:
    expect = {
        "citations": [1, "doc-4"],
        "toolCalls": [{"name": "f", "arguments": {"a": None}}],
        "json": {"type": "object"},
        "refuses": False,
        "contains": ["4711"],
    }
    found = read(tmp_path, {**GOOD, "expect": expect}, {**GOOD, "id": 2})
    assert found[0].expect is not None
    assert found[0].expect.citations == ("1", "doc-4")
    assert found[0].expect.json_schema == {"type": "object"}
    text = [json.loads(examples.line(example)) for example in found]
    assert text[0]["expect"] == {**expect, "citations": ["1", "doc-4"]}
    assert text[1] == {**GOOD, "id": "2"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"endpoint": "/v1/embeddings"}, "line 2: endpoint: .*none of /v1/completions, /v1/chat"),
        ({"body": "x"}, "line 2: body: "),
        ({"expect": {"citation": ["1"]}}, "line 2: expect.citation: Extra inputs"),
        ({"id": ""}, "line 2: id: "),
        ({"id": "1"}, "line 2: the id '1' is that of line 1, too"),
        ({"prompt": "x"}, "line 2: prompt: Extra inputs .* `dataset import`"),
    ],
)
def test_a_broken_set_names_its_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        read(tmp_path, GOOD, {**GOOD, "id": "2", **change})


def test_an_error_of_a_set_does_not_quote_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, {**GOOD, "body": "jo@example.org"})
    assert "jo@" not in str(caught.value)
    assert caught.value.__cause__ is None
