"""Check digits, which tell a number that means somebody from one that only looks like it."""

from __future__ import annotations

from datetime import date

_VERHOEFF_PRODUCT = tuple(
    tuple(int(c) for c in row)
    for row in (
        "0123456789",
        "1234067895",
        "2340178956",
        "3401289567",
        "4012395678",
        "5987604321",
        "6598710432",
        "7659821043",
        "8765932104",
        "9876543210",
    )
)
_VERHOEFF_TURN = tuple(
    tuple(int(c) for c in row)
    for row in (
        "0123456789",
        "1576283094",
        "5803796142",
        "8916043527",
        "9453126870",
        "4286573901",
        "2793806415",
        "7046913258",
    )
)


def luhn(digits: str) -> bool:
    """Payment cards (ISO/IEC 7812)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod97(iban: str) -> bool:
    """IBAN, upper case, without separators (ISO 13616)."""
    turned = iban[4:] + iban[:4]
    return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def verhoeff(digits: str) -> bool:
    """Aadhaar of India."""
    state = 0
    for place, digit in enumerate(reversed(digits)):
        state = _VERHOEFF_PRODUCT[state][_VERHOEFF_TURN[place % 8][int(digit)]]
    return state == 0


def steuer_id(digits: str) -> bool:
    """Tax number of Germany: ISO 7064 mod 11,10, and one digit that repeats."""
    if len(digits) != 11 or digits[0] == "0":
        return False
    counts = sorted(digits[:10].count(d) for d in set(digits[:10]))
    if counts[-1] not in (2, 3) or counts[-2] != 1:
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def nir(number: str) -> bool:
    """Social security number of France, 15 characters, Corsica's 2A and 2B included."""
    body = number[:13].upper().replace("2A", "19").replace("2B", "18")
    if not (body.isdigit() and number[13:].isdigit() and body[0] in "12378"):
        return False
    month = int(body[3:5])
    if not (1 <= month <= 12 or 20 <= month <= 42 or month >= 50):
        return False
    return 97 - int(body) % 97 == int(number[13:])


def dni(number: str) -> bool:
    """DNI and NIE of Spain: the letter is the number mod 23."""
    digits = {"X": "0", "Y": "1", "Z": "2"}.get(number[0], number[0]) + number[1:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


_ODD_TENS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (*_ODD_TENS, *_ODD_TENS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)


def codice_fiscale(code: str) -> bool:
    """Tax code of Italy, 16 characters in upper case."""
    total = 0
    for place, character in enumerate(code[:15]):
        if place % 2 == 0:
            total += _ODD[character]
        else:
            total += int(character) if character.isdigit() else ord(character) - ord("A")
    return chr(ord("A") + total % 26) == code[15]


def bsn(digits: str) -> bool:
    """Citizen number of the Netherlands: the eleven test."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    total = sum(w * int(d) for w, d in zip(weights, digits, strict=True))
    return total % 11 == 0 and int(digits) > 0


def pesel(digits: str) -> bool:
    """Citizen number of Poland: a date of birth, and a check digit."""
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)
    if sum(w * int(d) for w, d in zip(weights, digits, strict=True)) % 10:
        return False
    month = int(digits[2:4])
    century = {4: 1800, 0: 1900, 1: 2000, 2: 2100, 3: 2200}[month // 20]
    try:
        date(century + int(digits[:2]), month % 20, int(digits[4:6]))
    except ValueError:
        return False
    return True


def cpf(digits: str) -> bool:
    """Taxpayer number of Brazil: two check digits."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum((length + 1 - i) * int(digits[i]) for i in range(length))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def ssn(digits: str) -> bool:
    """Social security number of the USA: no check digit, but numbers that were never given.

    Those from 900 on are of taxpayers without a social security number (ITIN).
    """
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and group != "00" and serial != "0000"
