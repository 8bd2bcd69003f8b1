"""Addresses of the net: e-mail, IP, and URLs that carry credentials."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from kvquant.shadow.pii.digits import compiled
from kvquant.shadow.pii.finding import Found
from kvquant.shadow.pii.normalising import View

_LOCAL = r"[A-Za-z0-9\x80_!#$%&'*+/=?^`{|}~.\-]"
_LABEL = r"[A-Za-z0-9\x80](?:[A-Za-z0-9\x80\-]*[A-Za-z0-9\x80])?"
_MAIL = compiled(rf"({_LOCAL}*[A-Za-z0-9\x80_+\-])@((?:{_LABEL}\.)+[A-Za-z\x80][A-Za-z0-9\x80\-]+)")
_TOP_LEVEL = (
    r"(?:com|org|net|edu|gov|info|biz|io|co|dev|app|me|de|fr|es|it|nl|pl|br|in|uk|us|eu|at|ch|be|pt"
    r"|se|no|dk|fi|cz|ie|ca|au|nz|jp|cn|kr|ru|tr|mx|ar|za|example|test)"
)
_USUAL = re.compile(_TOP_LEVEL)
_AT = r"(?:\s{0,2}[\[({<]\s?at\s?[\])}>]\s{0,2}|\s{1,2}@\s{0,2}|\s{0,2}@\s{1,2})"
_SPELT_DOT = r"(?:\s{0,2}[\[({<]\s?dot\s?[\])}>]\s{0,2}|\sdot\s)"
_DOT = rf"(?:{_SPELT_DOT}|\s?\.\s?)"
_WORD = r"[A-Z0-9\x80][A-Z0-9\x80\-]*"
# `see it at example.com` is no address: after a bare `at`, the dot must be spelt too.
_SPELT_MAIL = compiled(
    rf"(?i)[A-Z0-9\x80][A-Z0-9\x80_.+\-]*(?:{_AT}{_WORD}(?:{_DOT}{_WORD})*(?:{_SPELT_DOT}|\.)"
    rf"|\sat\s{_WORD}(?:{_SPELT_DOT}{_WORD})*{_SPELT_DOT}){_TOP_LEVEL}\b"
)
_NO_TOP_LEVEL = frozenset(
    (
        *("png", "jpg", "jpeg", "gif", "svg", "webp", "js", "ts", "jsx", "tsx", "css", "json"),
        *("html", "yaml", "yml", "toml", "txt", "pdf", "whl", "tgz", "gz", "lock"),
        *("service", "socket", "timer", "mount", "target"),
    )
)
"""What ends file names and names of systemd units, and no domain."""


def mails(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find e-mail addresses, written plainly or as `jo at example dot org`."""
    for match in _MAIL.finditer(view.plain):
        start, end = match.span()
        local, domain = view.text[slice(*match.span(1))], view.text[slice(*match.span(2))]
        trimmed = local.lstrip("!#$%&'*/=?^`{|}~.-")
        # In a URL or an assignment the address is what comes after the last sign of these.
        start += len(local) - len(trimmed)
        for sign in "/=?&|`{}":
            cut = trimmed.rfind(sign) + 1
            start, trimmed = start + cut, trimmed[cut:]
        quotes = len(trimmed) - len(trimmed.lstrip("'"))
        start, trimmed = start + quotes, trimmed[quotes:]
        if not trimmed or _is_code(view, trimmed, domain, end):
            continue
        yield Found(start, end, "EMAIL", f"{trimmed}@{domain}".lower())
    if b"at" in view.plain or b"AT" in view.plain or b"@" in view.plain:
        for match in _SPELT_MAIL.finditer(view.plain):
            start, end = match.span()
            yield Found(start, end, "EMAIL", _spelt(view.text[start:end]))


def _spelt(text: str) -> str:
    plain = text.lower()
    for sign in "[](){}<>":
        plain = plain.replace(sign, " ")
    words = plain.replace("@", " at ").replace(".", " dot ").split()
    return "".join({"at": "@", "dot": "."}.get(word, word) for word in words)


def _is_code(view: View, local: str, domain: str, end: int) -> bool:
    top = domain.rpartition(".")[2].lower()
    following = view.text[end : end + 1]
    return (
        top in _NO_TOP_LEVEL
        or (following == "(" and _USUAL.fullmatch(top) is None)
        or (local == "git" and following in (":", "/"))
        or (domain[0].isdigit() and domain[1:2] == "x")
    )


_IP4 = compiled(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3,}")
_IP6 = compiled(r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,}(?:(?:\.[0-9]{1,3}){3})?")
_VERSION = compiled(
    r"(?i)(?:\bv|\bversion|\bver\.?|\brelease|\bbuild|\brev(?:ision)?|\bfirmware|\bsections?|\bsec\."
    r"|\bchapter|\bclause|\boid|\bsdk|\bdriver|\xa7|==|>=|<=|~=?|\^|[A-Za-z]@)[ :=]{0,3}\z"
)
_FILE = compiled(r"[A-Za-z]-\z")
_PRODUCT = compiled(r"[A-Za-z]/\z")


def ips(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find addresses of hosts, the machine's own left out."""
    plain = view.plain
    for match in _IP4.finditer(plain):
        start, end = match.span()
        before, after = plain[max(0, start - 24) : start], plain[end : end + 2]
        if _joins(before[-1:]) or before[-1:] == b"." or _joins(after[:1]):
            continue
        address = view.text[start:end]
        if address.count(".") != 3 or _is_version(address, before, after):
            continue
        yield from _address(address, start, end)
    if plain.count(b":") < 2:
        return
    for match in _IP6.finditer(plain):
        start, end = match.span()
        before, after = plain[max(0, start - 1) : start], plain[end : end + 1]
        address = view.text[start:end]
        if address.endswith(":") and not address.endswith("::"):
            address, end, after = address[:-1], end - 1, b":"
        if _joins(before) or _joins(after) or before == b":":
            continue
        # `std::abs` and `a::b` are code; an address of a host has digits.
        if any(c.isdigit() for c in address):
            yield from _address(address, start, end)


def _joins(character: bytes) -> bool:
    return character.isalnum() or character == b"_"


def _is_version(address: str, before: bytes, after: bytes) -> bool:
    return bool(
        _VERSION.search(before)
        or (_PRODUCT.search(before) and address.endswith(".0.0"))
        or (_FILE.search(before) and after[:1] in (b".", b"-") and after[1:].isalpha())
    )


def _address(text: str, start: int, end: int) -> Iterator[Found]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return
    if address.is_loopback or address.is_unspecified or text.startswith("255."):
        return
    yield Found(start, end, "IP", address.compressed)


_URL = compiled(r"(?i)\b[a-z][a-z0-9+.\-]*://[^\s/@\"'<>`]+@[^\s\"'<>`]+")


_SSH = compiled(r"(?i)\A(?:git\+)?ssh://git@")


def urls(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find URLs with a user name or a password in them."""
    for match in _URL.finditer(view.plain):
        start, end = match.span()
        if _SSH.search(view.plain[start:end]) is not None:
            continue
        url = view.text[start:end].rstrip(".,;:!?)]}")
        yield Found(start, start + len(url), "URL", url)
