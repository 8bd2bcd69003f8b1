"""Keys, tokens and certificates: what opens doors."""

from __future__ import annotations

from collections.abc import Iterator

from kvquant.shadow.pii.digits import compiled
from kvquant.shadow.pii.finding import Found
from kvquant.shadow.pii.normalising import View

_VENDORS = (
    r"(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ANVA|ABIA|ACCA)[A-Z0-9]{16,}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|imt)-[A-Za-z0-9_\-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9\-]{10,}",  # Slack
    r"xapp-[0-9]-[A-Za-z0-9\-]{10,}",
    r"(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{24,}",
    r"sk-(?:[a-z0-9]+-)*[A-Za-z0-9_\-]{20,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek
    r"AIza[A-Za-z0-9_\-]{35,}",  # Google
    r"ya29\.[A-Za-z0-9_\-]{20,}",
    r"GOCSPX-[A-Za-z0-9_\-]{20,}",
    r"1//0[A-Za-z0-9_\-]{30,}",
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36,}",
    r"pypi-AgE[A-Za-z0-9_\-]{16,}",
    r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}",  # SendGrid
    r"(?:SK|AC)[0-9a-f]{32}",  # Twilio
    r"key-[0-9a-f]{32}",  # Mailgun
    r"[0-9]{8,10}:AA[A-Za-z0-9_\-]{33}",  # Telegram
    r"[MNO][A-Za-z0-9_\-]{23,27}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,}",  # Discord
    r"do[opr]_v1_[0-9a-f]{64}",  # DigitalOcean
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # Shopify
    r"dapi[0-9a-f]{32}",  # Databricks
    r"(?:gsk_|r8_|pplx-|xai-|csk-|nvapi-)[A-Za-z0-9_\-]{32,}",
    r"hv[sbr]\.[A-Za-z0-9_\-]{24,}",  # Vault
    r"ATATT3[A-Za-z0-9_\-=]{20,}",  # Atlassian
    r"(?:lin_api_|ntn_|glsa_|glc_|sntrys_|dp\.pt\.|sbp_|dckr_pat_|NRAK-|PMAK-|HRKU-|fo1_|rubygems_"
    r"|sq0atp-|sq0csp-|EAAA|figd_|dop_|tskey-|oy2|PRIVATE-TOKEN-)[A-Za-z0-9_\-]{24,}",
    r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    r"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9_/]{20,}",
    r"https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/[0-9]+/[A-Za-z0-9_\-]{20,}",
)
_KEY = compiled(r"\b(?:" + "|".join(_VENDORS) + r")")
_ASSIGNED = compiled(
    r"(?i)(?:api[_\-]?key|secret(?:[_\-]?access)?[_\-]?key|client[_\-]?secret|access[_\-]?key"
    r"|account[_\-]?key|(?:access|auth|refresh|id|session|bearer)[_\-]?token|x-api-key|signature"
    r"|authorization|passw(?:or)?d|passphrase|private[_\-]?key|secret|token|\bpwd)"
    r"[\"'`]?\s{0,2}(?::=|=>|[:=])\s{0,2}(?:(?:bearer|basic|token)\s{1,2})?[\"'`]?"
    r"([A-Za-z0-9+/_=.~\-]{16,})"
)
_BEARER = compiled(r"(?i)\b(?:bearer|basic)\s{1,2}([A-Za-z0-9+/_=.~\-]{16,})")
_JWT = compiled(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*")
_PEM = compiled(r"-----BEGIN [A-Z0-9 ]{1,64}-----")
_PEM_BODY = compiled(r"[A-Za-z0-9+/=\s]*")
_PEM_END = b"-----END "
_LONGEST_PEM = 128 * 1024


def tokens(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find keys by the prefix of their vendor, and by the name that they are assigned to."""
    plain = view.plain
    for match in _KEY.finditer(plain):
        start, end = match.span()
        # The prefix sk- is also one of style sheets.
        if plain[start : start + 3] != b"sk-" or _is_random(view.text[start:end]):
            yield _key(view, start, end)
    for pattern in (_ASSIGNED, _BEARER):
        for match in pattern.finditer(view.plain):
            start, end = match.span(1)
            value = view.text[start:end].rstrip(".")
            # A dotted name is code: `token = settings.auth.token_of_2024`.
            if _is_random(value) and not value.replace(".", "").replace("_", "").isalpha():
                yield _key(view, start, start + len(value))


def _key(view: View, start: int, end: int) -> Found:
    return Found(start, end, "API_KEY", view.text[start:end])


def _is_random(value: str) -> bool:
    """Whether a value has been drawn, rather than being made of words."""
    digits = sum(c.isdigit() for c in value)
    return digits >= 2 and digits < len(value)


def jwts(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find JSON web tokens."""
    for match in _JWT.finditer(view.plain):
        start, end = match.span()
        yield Found(start, end, "JWT", view.text[start:end])


def pems(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find PEM blocks, those included that were cut off."""
    plain = view.plain
    heads = [match.span() for match in _PEM.finditer(plain)]
    bounds = [start for start, _ in heads[1:]] + [len(plain)] * bool(heads)
    for (start, body), bound in zip(heads, bounds, strict=True):
        end = plain.find(_PEM_END, body, min(bound, body + _LONGEST_PEM))
        close = plain.find(b"-----", end + len(_PEM_END), end + 100) if end >= 0 else -1
        if close >= 0:
            end = close + len(b"-----")
        else:
            # All in one: what follows the last line of a block that was cut off is not harmed.
            end = next(m.end() for m in _PEM_BODY.finditer(plain, body, bound))
            end = body + len(plain[body:end].rstrip())
        value = "".join(view.text[start:end].split())
        yield Found(start, end, "PEM", value)
