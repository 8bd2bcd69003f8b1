"""Each kind of personal data in both directions: what is found, and what only looks like it."""

from __future__ import annotations

import pytest

from kvquant.shadow.pii import Sanitizer

SANITIZER = Sanitizer(b"a key of the tests", seconds=60)

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1c7+9z5Pad7OejecsQ0bu3aozN3tihPmUOjZr1tVoG\n"
    "b0fPyS0mUv0Zq0Y7o5UZ2Qkd4nTVdF0Q==\n-----END RSA PRIVATE KEY-----"
)
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)

FOUND = [
    ("EMAIL", "jo.doe+news@mail.example.co.uk"),
    ("EMAIL", "JO@EXAMPLE.ORG"),
    ("EMAIL", "müller@bücher.example"),
    ("EMAIL", "иван@пример.рф"),
    ("EMAIL", "jo [at] example [dot] org"),
    ("EMAIL", "jo at example dot org"),
    ("EMAIL", "jo @ example.com"),
    ("EMAIL", "jo@\nexample.com"),
    ("EMAIL", "o'neil@example.com"),
    ("PHONE", "+1 415-555-2671"),
    ("PHONE", "+1 (415) 555-2671 x123"),
    ("PHONE", "(415) 555-2671"),
    ("PHONE", "415.555.2671"),
    ("PHONE", "+44 20 7946 0958"),
    ("PHONE", "+44 (0)20 7946 0958"),
    ("PHONE", "020 7946 0958"),
    ("PHONE", "0171/1234567"),
    ("PHONE", "(030) 123456"),
    ("PHONE", "+4917012345678"),
    ("PHONE", "0049 170 1234567"),
    ("PHONE", "06 12 34 56 78"),
    ("PHONE", "01.23.45.67.89"),
    ("PHONE", "+34 612 345 678"),
    ("PHONE", "612 345 678"),
    ("PHONE", "+55 (11) 91234-5678"),
    ("PHONE", "(11) 91234-5678"),
    ("PHONE", "+91 98765 43210"),
    ("PHONE", "13812345678"),
    ("PHONE", "+86 138 1234 5678"),
    ("PHONE", "090-1234-5678"),
    ("PHONE", "8 (812) 415-86-83"),
    ("CARD", "4111111111111111"),
    ("CARD", "4111 1111 1111 1111"),
    ("CARD", "5500-0000-0000-0004"),
    ("CARD", "3782 822463 10005"),
    ("CARD", "30569309025904"),
    ("CARD", "6011.1111.1111.1117"),
    ("CARD", "3530111333300000"),
    ("CARD", "6304000000000000"),
    ("CARD", "2223003122003222"),
    ("CARD", "2200700000000009"),
    ("IBAN", "DE89370400440532013000"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "gb82 west 1234 5698 7654 32"),
    ("IBAN", "FR14 2004 1010 0505 0001 3M02 606"),
    ("IBAN", "NO93 8601 1117 947"),
    ("SSN", "536-90-4399"),
    ("SSN", "536 90 4399"),
    ("NINO", "AB123456C"),
    ("NINO", "ab 12 34 56 c"),
    ("STEUER_ID", "86095742719"),
    ("STEUER_ID", "86 095 742 719"),
    ("NIR", "255081416802538"),
    ("NIR", "2 55 08 14 168 025 38"),
    ("NIR", "1 85 05 2A 006 048 71"),
    ("DNI", "12345678Z"),
    ("DNI", "12.345.678-Z"),
    ("DNI", "X1234567L"),
    ("FISCALE", "RSSMRA85T10A562S"),
    ("FISCALE", "RSS MRA 85T10 A562S"),
    ("PESEL", "44051401359"),
    ("CPF", "529.982.247-25"),
    ("CPF", "52998224725"),
    ("AADHAAR", "2341 2341 2346"),
    ("IP", "192.0.2.17"),
    ("IP", "10.20.30.40"),
    ("IP", "2001:db8::8a2e:370:7334"),
    ("IP", "fe80::1ff:fe23:4567:890a"),
    ("IP", "::ffff:192.0.2.128"),
    ("API_KEY", "AKIAIOSFODNN7EXAMPLE7"),
    ("API_KEY", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
    ("API_KEY", "github_pat_11ABCDEFG0abcdefghijkl_0123456789abcdefghijklmnopqrstuv"),
    ("API_KEY", "glpat-3xAmPl3t0k3nV4lu3_9Q"),
    ("API_KEY", "xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx"),
    ("API_KEY", "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc"),
    ("API_KEY", "sk-proj-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5z"),
    ("API_KEY", "sk-ant-api03-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7bC9dE1-fG3hI5jK7AA"),
    ("API_KEY", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"),
    ("API_KEY", "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"),
    ("API_KEY", "npm_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789"),
    ("API_KEY", "pypi-AgEIcHlwaS5vcmcCJDU3NmE2NjQ3LWU4MzctNGE5"),
    ("JWT", JWT),
    ("PEM", PEM),
    ("URL", "postgres://admin:hunter2@db.internal:5432/users?x=1"),
    ("URL", "https://x-token:abc@git.example.com/repo.git"),
]

SURROUNDINGS = [
    "{}",
    "It is {}, they say.",
    "({})",
    "a\t{}\r\nb",
    '{{"value": "{}"}}',
    "x={};",
    "值是{}。",
    "<td>{}</td>",
]


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize(("kind", "value"), FOUND)
def test_it_is_found_in_any_surroundings(kind: str, value: str, around: str) -> None:
    text = around.format(value)

    cleaned, found = SANITIZER.text(text)

    assert found == {kind: 1}
    before, after = around.replace("{{", "{").replace("}}", "}").split("{}")
    assert cleaned.startswith(f"{before}<{kind}_")
    assert cleaned.endswith(f">{after}")


IN_CONTEXT = [
    ("SSN", "ssn: {}", "536904399"),
    ("BSN", "my BSN is {}", "111222333"),
    ("AADHAAR", "Aadhaar no. {}", "234123412346"),
    ("PHONE", "call me at {}", "4155552671"),
    ("PHONE", "Mein Handy: {}", "1701234567"),
    ("PHONE", "{} is my phone number", "612345678"),
    ("PHONE", "电话 {}", "62281234"),
    ("PHONE", "tel. {}", "555-2671"),
    ("API_KEY", "Authorization: Bearer {}", "9f86d081884c7d659a2feaa0c55ad015"),
    ("API_KEY", "aws_secret_access_key = {}", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLE7K8"),
    ("API_KEY", "export DB_PASSWORD='{}'", "Tr0ub4dor-and-3-more"),
]


@pytest.mark.parametrize(("kind", "around", "value"), IN_CONTEXT)
def test_a_word_nearby_makes_a_bare_number_personal(kind: str, around: str, value: str) -> None:
    cleaned, found = SANITIZER.text(around.format(value))

    assert found == {kind: 1}
    assert value not in cleaned
    assert SANITIZER.text(f"There were {value} of them")[1] == {}


def test_the_key_in_json_is_such_a_word() -> None:
    cleaned = SANITIZER.body({"phone_number": "4155552671", "mobile": 4155552671, "bsn": 111222333})

    assert cleaned.found == {"BSN": 1, "PHONE": 2}
    assert SANITIZER.body({"count": 4155552671, "total": "4155552671"}).found == {}


NOT_FOUND = [
    # Versions, dates and times.
    "version 1.2.3.4",
    "v10.0.19041.1",
    "pip install foo==1.2.3.4",
    "Mozilla/5.0 (X11; Linux x86_64) Chrome/120.0.0.0 Safari/537.36",
    "section 4.1.2.3",
    "numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.whl",
    "2024-01-02T03:04:05.678901Z",
    "2024-01-02 03:04:05,678",
    "01.02.2024 12:30:45",
    "12/31/1999 23:59",
    "02.01.24 12.30",
    "1700000000",
    "1700000000123",
    "20240102030405",
    "12:30:45",
    # Hashes and identifiers.
    "d41d8cd98f00b204e9800998ecf8427e",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "550e8400-e29b-41d4-a716-446655440000",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit 4155552671abc",
    "0xDEADBEEF 0x1234567890abcdef",
    "aa:bb:cc:dd:ee:ff",
    "order 4111111111111112",
    "Order #482910384, invoice INV-2024-001234",
    "SKU 0482910384",
    "tracking 1Z999AA10123456784",
    "ISBN 978-3-16-148410-0",
    "doi:10.1000/182.4567",
    "arXiv:2401.12345v2",
    "ORCID 0000-0002-1825-0097",
    # Numbers.
    "3.141592653589793 2.718281828459045",
    "0.4111111111111111",
    "1,234,567.89 EUR",
    "1 234 567 890 tokens",
    "$ 12,345,678.00",
    "1e-10 6.02214076e23",
    "12 34 56 78 90 12 34 56 78 90",
    "12345 67890 54321 98765 10101",
    "415 555 2671 313 555 8812",
    "the 2nd of 3 in 1999",
    "[12] [13, 14] (see [1]-[3])",
    "10.5 ms p99, 20.25 ms max, 65536 KiB",
    "192.168.0.0.1.2",
    "256.300.1.2",
    "127.0.0.1 and ::1 and 0.0.0.0",
    "netmask 255.255.255.0",
    # Code.
    "std::vector<int>::iterator it; a::b::c",
    "x = W @ x.reshape(3, 4)",
    "y = W@x.reshape(3)",
    "@app.route('/users/<int:id>')",
    "git@github.com:org/repo.git",
    "npm i react@18.2.0 @types/node@^20.1.0",
    "icon@2x.png",
    "Look at example.com or meet us at docs.example.org.",
    "SKU-36686804 x 6",
    "my social is 157-52-191.\nGlimlach geboren zwemmen",
    "systemctl restart getty@tty1.service",
    "def f(token: str, password: str = '') -> None: ...",
    "token = tokenizer.encode(text)[0]",
    "password = os.environ['DB_PASSWORD']",
    "max_tokens=4096, api_key=settings.api_key",
    "secret: kubernetes.io/service-account-token",
    ".sk-fading-circle .sk-circle-before-animation {}",
    "https://example.com/a/b?c=1#d",
    "https://example.com:8443/path@2x",
    "ssh://git@github.com/org/repo.git",
    "for (i = 0; i < 10; ++i) { a[i] = b[i] * 0.5f; }",
    "SELECT * FROM t WHERE id = 1234567 AND n > 7654321",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg",
    # Checks that fail.
    "DE89370400440532013001",
    "4111 1111 1111 1112",
    "12345678A",
    "RSSMRA85T10A562T",
    "000-12-3456",
    "666-12-3456",
    "123.456.789-00",
    "BG123456C",
]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_personal_stays(text: str) -> None:
    assert SANITIZER.text(text) == (text, {})
    assert SANITIZER.text(f"Look: {text} (that is all)")[1] == {}


def test_neighbours_are_told_apart() -> None:
    text = (
        "jo@example.com,ann@example.org;4111111111111111 5500000000000004\n"
        "DE89370400440532013000 GB82WEST12345698765432 192.0.2.1/192.0.2.2"
    )

    cleaned, found = SANITIZER.text(text)

    assert found == {"CARD": 2, "EMAIL": 2, "IBAN": 2, "IP": 2}
    assert cleaned.count("<") == 8


def test_a_block_that_was_cut_off_is_found() -> None:
    cleaned, found = SANITIZER.text(f"key: {PEM[:120]}")

    assert found == {"PEM": 1}
    assert "MII" not in cleaned


def test_a_card_among_other_numbers_is_found() -> None:
    cleaned, _ = SANITIZER.text("12 4111 1111 1111 1111 12/27 123")

    assert cleaned.startswith("12 <CARD_")
    assert cleaned.endswith("> 12/27 123")
