"""The sanitizer's promises: the rest untouched, equal values equal, cleaned or withheld."""

from __future__ import annotations

import json

import pytest
from pydantic import JsonValue

from kvquant.core.shadow_settings import UserPattern
from kvquant.shadow.pii import REASONS, Sanitizer, Withheld

KEY = b"a key of the tests"
MAIL = "jo.doe@example.com"


def clean(text: str, **options: float) -> str:
    return Sanitizer(KEY, seconds=30, **options).text(text)[0]  # type: ignore[arg-type]


def test_what_is_found_is_replaced_and_the_rest_stays_byte_for_byte() -> None:
    text = f"\ufeffHé\u200bllo \t{MAIL}\u00a0— the 2nd\u200b of ｔｗｏ\r\n"

    cleaned, found = Sanitizer(KEY).text(text)

    before, after = text.split(MAIL)
    assert cleaned.startswith(before + "<EMAIL_")
    assert cleaned.endswith(">" + after)
    assert found == {"EMAIL": 1}


def test_a_text_without_personal_data_is_the_same_object() -> None:
    text = "Nothing here, 12 times over."

    assert Sanitizer(KEY).text(text)[0] is text


def test_equal_values_stay_equal_however_they_are_written() -> None:
    cleaned = clean("4111 1111 1111 1111, 4111-1111-1111-1111; JO@EXAMPLE.ORG jo@example.org")

    cards, mails = cleaned.split("; ")
    assert len(set(cards.split(", "))) == 1
    assert len(set(mails.split(" "))) == 1


def test_another_key_makes_other_placeholders() -> None:
    assert Sanitizer(b"one").text(MAIL) != Sanitizer(b"two").text(MAIL)
    assert Sanitizer(b"one").text(MAIL) == Sanitizer(b"one").text(MAIL)


def test_lengths_stay_similar() -> None:
    for local in ("a", "some.body.with.a.name"):
        mail = f"{local}@mail.example.com"
        assert abs(len(clean(mail)) - len(mail)) <= 2


def test_every_string_of_a_document_is_cleaned_the_given_one_stays() -> None:
    body: JsonValue = {
        "model": "llama",
        "stream": True,
        "temperature": 0.2,
        "seed": None,
        "messages": [{"role": "user", "content": [{"type": "text", "text": f"I am {MAIL}"}]}],
        "contacts": {MAIL: 1},
        "card": 4111111111111111,
    }
    before = json.dumps(body)

    cleaned = Sanitizer(KEY).body(body)

    assert json.dumps(body) == before
    written = json.dumps(cleaned.body)
    assert MAIL not in written
    assert "4111111111111111" not in written
    assert '"model": "llama", "stream": true, "temperature": 0.2, "seed": null' in written
    assert cleaned.found == {"CARD": 1, "EMAIL": 2}


def test_two_keys_that_become_the_same_are_both_kept() -> None:
    cleaned = Sanitizer(KEY).body({MAIL: 1, MAIL.upper(): 2}).body

    assert isinstance(cleaned, dict)
    assert sorted(map(str, cleaned.values())) == ["1", "2"]


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_json_in_strings_stays_json_written_the_same_way(separators: tuple[str, str]) -> None:
    inner: JsonValue = {"to": MAIL, "cc": json.dumps({"also": [MAIL]}), "n": 3}
    arguments = json.dumps(inner, separators=separators)

    cleaned = Sanitizer(KEY).body({"arguments": arguments}).body

    assert isinstance(cleaned, dict)
    written = cleaned["arguments"]
    assert isinstance(written, str)
    assert "example" not in written
    read = json.loads(written)
    assert json.dumps(read, separators=separators) == written
    assert json.loads(read["cc"])["also"][0] == read["to"]


def test_escapes_and_keys_given_twice_do_not_hide_anything_in_json_strings() -> None:
    twice = '{"a": "jo\\u0040example.com", "a": "x"}'
    broken = '{"a": "jo\\u0040example.com", "b": '

    cleaned = Sanitizer(KEY).body([twice, broken]).body

    assert "example" not in str(cleaned)


@pytest.mark.parametrize("level", ["[", '{"a":'])
def test_what_is_nested_too_deeply_is_withheld(level: str) -> None:
    body: JsonValue = MAIL
    for _ in range(10_000):
        body = [body] if level == "[" else {"a": body}

    with pytest.raises(Withheld) as caught:
        Sanitizer(KEY).body(body)
    assert caught.value.reason == "unreadable"

    closing = "]" if level == "[" else "}"
    with pytest.raises(Withheld) as caught:
        Sanitizer(KEY).body(level * 10_000 + "1" + closing * 10_000)
    assert caught.value.reason == "unreadable"


def test_what_is_no_json_is_withheld() -> None:
    with pytest.raises(Withheld) as caught:
        Sanitizer(KEY).body({"a": MAIL.encode()})  # type: ignore[dict-item]
    assert caught.value.reason == "unreadable"


def test_a_text_that_is_too_long_is_withheld() -> None:
    sanitizer = Sanitizer(KEY, most_characters=100)

    sanitizer.text("x" * 100)
    with pytest.raises(Withheld) as caught:
        sanitizer.text("x" * 101)
    assert caught.value.reason == "oversized"
    with pytest.raises(Withheld):
        sanitizer.body(["x" * 50, "x" * 51])


def test_a_search_that_takes_too_long_is_given_up() -> None:
    times = iter(range(1000))
    sanitizer = Sanitizer(KEY, seconds=5, clock=lambda: float(next(times)))

    with pytest.raises(Withheld) as caught:
        sanitizer.text("short")
    assert caught.value.reason == "timeout"


def test_any_failure_is_withheld_and_tells_nothing_of_the_text() -> None:
    class Broken:
        def find(self, text: str) -> list[tuple[int, int, str]]:
            raise RuntimeError(text)

    with pytest.raises(Withheld) as caught:
        Sanitizer(KEY, finders=[Broken()]).text("secret words")

    error = caught.value
    assert caught.value.reason == "error"
    assert caught.value.reason in REASONS
    assert error.__context__ is None
    assert error.__cause__ is None
    assert "secret" not in repr(error)


def test_the_users_patterns_find_their_own_kinds() -> None:
    sanitizer = Sanitizer(KEY, [UserPattern(name="CUSTOMER_ID", pattern=r"\bC-\d{6}\b")])

    cleaned, found = sanitizer.text("customer C-123456 (Ｃ-１２３４５６), not C-1234567")

    first, second = cleaned.split(", ")[0].removeprefix("customer ").split(" ")
    assert found == {"CUSTOMER_ID": 2}
    assert second == f"({first})"
    assert cleaned.endswith("not C-1234567")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (UserPattern(name="A", pattern="(?=x)"), "RE2"),
        (UserPattern(name="A", pattern="x*"), "empty"),
        (UserPattern(name="EMAIL", pattern="x"), "taken"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_with_the_field(
    pattern: UserPattern, told: str
) -> None:
    with pytest.raises(ValueError, match=r"shadow\.patterns\[1\]") as caught:
        Sanitizer(KEY, [UserPattern(name="FINE", pattern="fine"), pattern])
    assert told in str(caught.value)


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        Sanitizer(b"")
