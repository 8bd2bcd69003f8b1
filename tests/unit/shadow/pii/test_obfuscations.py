"""Values in disguise: look-alikes, zero-width characters, wrapped lines, spaced digits, escapes."""

from __future__ import annotations

import pytest

from kvquant.shadow.pii import Sanitizer

SANITIZER = Sanitizer(b"a key of the tests", seconds=60)


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@pytest.mark.parametrize(
    ("kind", "plain", "disguised"),
    [
        ("EMAIL", "jo@example.com", full_width("jo@example.com")),
        ("EMAIL", "jo@example.com", "j\u200bo@exam\u00adple\u2060.com"),
        ("EMAIL", "jo@example.com", "jo%40example.com"),
        ("EMAIL", "jo@example.com", "jo&#64;example&#46;com"),
        ("EMAIL", "jo@example.com", "jo&#x40;example&period;com"),
        ("EMAIL", "jo@example.com", "jo\\u0040example.com"),
        ("EMAIL", "jo@example.com", "jo [at] example [dot] com"),
        ("EMAIL", "jo@example.com", "jo(at)example.com"),
        ("EMAIL", "jo@example.com", "jo@\nexample.com"),
        ("CARD", "4111111111111111", full_width("4111 1111 1111 1111")),
        ("CARD", "4111111111111111", "4111\u200b1111\u200c1111\ufeff1111"),
        ("CARD", "4111111111111111", "4111\u20111111\u20131111\u22121111"),
        ("CARD", "4111111111111111", "4111\u00a01111\u202f1111\u20091111"),
        ("CARD", "4111111111111111", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
        ("CARD", "4111111111111111", "41-11-11-11-11-11-11-11"),
        ("CARD", "4111111111111111", "4111.1111.1111.1111"),
        ("CARD", "4111111111111111", "41111111\r\n11111111"),
        ("CARD", "4111111111111111", "4111 1111\n1111 1111"),
        ("CARD", "4111111111111111", "4111%201111%201111%201111"),
        ("CARD", "4111111111111111", "\u0664\u0661\u0661\u0661" * 1 + "\u0661" * 12),
        ("CARD", "4111111111111111", "\U0001d7d2" + "\U0001d7cf" * 15),
        ("IBAN", "DE89370400440532013000", "DE89\u00a03704-0044.0532\n0130 00"),
        ("IBAN", "DE89370400440532013000", full_width("de89370400440532013000")),
        ("SSN", "536-90-4399", "536\u201190\u20114399"),
        ("SSN", "536-90-4399", "536\u200b-90-\u200b4399"),
        ("CPF", "52998224725", "529 982 247 25"),
        ("PESEL", "44051401359", "4 4 0 5 1 4 0 1 3 5 9"),
        ("NINO", "AB123456C", "A B 1 2 3 4 5 6 C"),
        ("FISCALE", "RSSMRA85T10A562S", "RSSMRA85\nT10A562S"),
        ("DNI", "12345678Z", "1 2 3 4 5 6 7 8 Z"),
        ("PHONE", "+14155552671", "+1\u00a0(415)\u00a0555\u20112671"),
        ("PHONE", "+14155552671", "%2B14155552671"),
        ("IP", "192.0.2.17", full_width("192.0.2.17")),
        ("IP", "192.0.2.17", "192.0\u200b.2.17"),
    ],
)
def test_a_disguised_value_gets_the_placeholder_of_the_plain_one(
    kind: str, plain: str, disguised: str
) -> None:
    cleaned, found = SANITIZER.text(f"é: {disguised}\u200b!")

    assert found == {kind: 1}
    assert cleaned == f"é: {SANITIZER.text(plain)[0]}\u200b!"


@pytest.mark.parametrize(
    "text",
    [
        "ﬁne ½ ² ™ Ⅳ ㎏ ﷺ",
        "naïve café\u0301 \u202eevil\u202c 👩\u200d👩\u200d👧 \U0001f1e9\U0001f1ea",
        "lone \ud800 surrogate \udfff",
        "\x00\x01\x7f\x80\x81\x82",
        "100%25 &amp; &#0; &#x110000; &bogus; \\u12 \\x %zz",
        "请 不要 改变 这个。ไทย 한국어 עברית",
    ],
)
def test_odd_characters_stay_as_they_are(text: str) -> None:
    cleaned, _ = SANITIZER.text(f"{text} jo@example.com {text}")

    assert cleaned.startswith(f"{text} <EMAIL_")
    assert cleaned.endswith(f"> {text}")
    assert SANITIZER.text(text) == (text, {})
