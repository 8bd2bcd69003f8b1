"""Personal data of each kind, drawn at random and valid, and the words that people put around."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable

from faker import Faker

from kvquant.shadow.pii.checksums import steuer_id, verhoeff

PHONE_WORDS = {
    "en_US": ("Call me at {}.", "phone: {}", "{} is my cell phone", "Tel. {}"),
    "en_GB": ("Please ring {}", "Mobile: {}", "telephone {}", "fax {}"),
    "de_DE": ("Telefon: {}", "Ruf mich bitte an: Tel. {}", "Handy {}", "Fax: {}"),
    "fr_FR": ("Appelez le {}", "Tél. : {}", "mon portable est le {}", "téléphone {}"),
    "es_ES": ("Llámame al {}", "teléfono {}", "Tel.: {}", "mi móvil es {}"),
    "it_IT": ("Chiamami al {}", "cellulare {}", "Tel. {}", "telefono: {}"),
    "nl_NL": ("Bel {} maar", "Telefoon: {}", "mobiel {}", "tel. {}"),
    "pl_PL": ("Zadzwoń: {}", "tel. {}", "telefon {}", "kom. {}"),
    "pt_BR": ("Ligue para {}", "celular {}", "Telefone: {}", "WhatsApp {}"),
    "en_IN": ("Call me on {}", "Mobile: {}", "phone {}", "WhatsApp: {}"),
    "ja_JP": ("電話 {}", "携帯は{}です", "TEL: {}", "ご連絡は{}まで"),
    "zh_CN": ("电话:{}", "我的手机是{}", "请打 {} 联系我", "手机 {}"),
}
"""For each locale of the corpus, how a phone number is spoken of."""
LOCALES = tuple(PHONE_WORDS)


def _text(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))


_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def _key(rng: random.Random) -> str:
    upper = string.ascii_uppercase + string.digits
    return rng.choice(
        (
            lambda: "AKIA" + _text(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 14) + "77",
            lambda: "ghp_" + _text(rng, _ALNUM, 36),
            lambda: "github_pat_" + _text(rng, _ALNUM, 22) + "_" + _text(rng, _ALNUM, 59),
            lambda: "glpat-" + _text(rng, _ALNUM + "_-", 18) + "4x",
            lambda: (
                f"xoxb-{rng.randrange(10**12)}-{rng.randrange(10**12)}-{_text(rng, _ALNUM, 24)}"
            ),
            lambda: "sk_" + "live_" + _text(rng, _ALNUM, 24),
            lambda: "sk-proj-" + _text(rng, _ALNUM + "_-", 60) + "9",
            lambda: "sk-ant-api03-" + _text(rng, _ALNUM + "_-", 90) + "AA",
            lambda: "AIza" + _text(rng, _ALNUM + "_-", 34) + "Q",
            lambda: "hf_" + _text(rng, _ALNUM, 34),
            lambda: "npm_" + _text(rng, _ALNUM, 36),
            lambda: "pypi-AgEIcHlwaS5vcmc" + _text(rng, _ALNUM, 120),
            lambda: "SG." + _text(rng, _ALNUM, 22) + "." + _text(rng, _ALNUM, 43),
            lambda: "AC" + _text(rng, _HEX, 32),
            lambda: "dapi" + _text(rng, _HEX, 32),
            lambda: "gsk_" + _text(rng, upper + string.ascii_lowercase, 52),
        )
    )()


def _encoded(rng: random.Random, size: int) -> str:
    return base64.urlsafe_b64encode(rng.randbytes(size)).decode().rstrip("=")


def _jwt(rng: random.Random) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    return f"{head}.{_encoded(rng, rng.randint(40, 200))}.{_encoded(rng, 32)}"


def _pem(rng: random.Random) -> str:
    name = rng.choice(("RSA PRIVATE KEY", "PRIVATE KEY", "CERTIFICATE", "EC PRIVATE KEY"))
    body = base64.encodebytes(rng.randbytes(rng.randint(100, 900))).decode()
    return f"-----BEGIN {name}-----\n{body}-----END {name}-----"


def _nino(rng: random.Random) -> str:
    letters = "ABCEHJLMOPRSW"
    plain = rng.choice("ACEHJLMOPRSW") + rng.choice(letters.replace("O", ""))
    digits = f"{rng.randrange(10**6):06d}"
    end = rng.choice("ABCD")
    return rng.choice(
        (f"{plain}{digits}{end}", f"{plain} {digits[:2]} {digits[2:4]} {digits[4:]} {end}")
    )


def _steuer_id(rng: random.Random) -> str:
    while True:
        ten = rng.sample("0123456789", 9)
        ten.insert(rng.randrange(10), rng.choice(ten))
        for check in "0123456789":
            number = "".join(ten) + check
            if steuer_id(number):
                return rng.choice(
                    (number, f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}")
                )


def _aadhaar(rng: random.Random) -> str:
    body = str(rng.randrange(2 * 10**10, 10**11))
    number = next(body + check for check in "0123456789" if verhoeff(body + check))
    return f"{number[:4]} {number[4:8]} {number[8:]}"


def _card(rng: random.Random, fake: Faker) -> str:
    number = fake.credit_card_number()
    if len(number) != 16:
        return number
    separator = rng.choice(("", "", " ", "-"))
    return separator.join(number[i : i + 4] for i in range(0, 16, 4))


def _iban(rng: random.Random, fakes: dict[str, Faker]) -> str:
    # Elsewhere Faker makes British ones that are a character short.
    number = fakes[
        rng.choice(("en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL"))
    ].iban()
    return rng.choice((number, " ".join(number[i : i + 4] for i in range(0, len(number), 4))))


def _url(rng: random.Random, fake: Faker) -> str:
    scheme = rng.choice(("postgres", "https", "redis", "amqp", "mongodb+srv", "mysql"))
    return f"{scheme}://{fake.user_name()}:{_text(rng, _ALNUM, 12)}@{fake.domain_name()}/app"


class Values:
    """Draws personal data; the same seed draws the same."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fakes = {locale: Faker(locale) for locale in LOCALES}
        for index, fake in enumerate(self.fakes.values()):
            fake.seed_instance(seed * 100 + index)

    def draw(self, kind: str, locale: str) -> tuple[str, str]:
        """Return a value of a kind, and a phrase with `{}` in its place."""
        rng, fake = self.rng, self.fakes[locale]
        of = self.fakes
        draws: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
            "EMAIL": (fake.ascii_email, ("{}", "<{}>", "mail {} please", "mailto:{}")),
            "PHONE": (fake.phone_number, PHONE_WORDS[locale]),
            "CARD": (lambda: _card(rng, fake), ("{}", "card {}", "Visa: {}, 12/27", "({})")),
            "IBAN": (lambda: _iban(rng, of), ("{}", "IBAN {}", "IBAN: {}, thanks", "to {}.")),
            "SSN": (of["en_US"].ssn, ("SSN {}", "{}", "my social is {}.")),
            "NINO": (lambda: _nino(rng), ("NI number {}", "{}", "NINO: {}")),
            "STEUER_ID": (lambda: _steuer_id(rng), ("Steuer-ID {}", "{}", "IdNr. {}")),
            "NIR": (of["fr_FR"].ssn, ("numéro de sécu {}", "{}", "NIR : {}")),
            "DNI": (lambda: self._dni(of["es_ES"]), ("DNI {}", "{}", "NIE/NIF: {}")),
            "FISCALE": (of["it_IT"].ssn, ("codice fiscale {}", "{}", "C.F. {}")),
            "BSN": (of["nl_NL"].ssn, ("BSN {}", "burgerservicenummer: {}", "mijn bsn is {}")),
            "PESEL": (of["pl_PL"].ssn, ("PESEL {}", "{}", "nr PESEL: {}")),
            "CPF": (of["pt_BR"].cpf, ("CPF {}", "{}", "CPF nº {}")),
            "AADHAAR": (lambda: _aadhaar(rng), ("Aadhaar {}", "{}", "UID: {}")),
            "IP": (
                lambda: rng.choice((fake.ipv4_public, fake.ipv4_private, fake.ipv6))(),
                ("{}", "from {}", "host {} refused", "[{}]"),
            ),
            "API_KEY": (lambda: _key(rng), ("{}", "key={}", 'api_key = "{}"', "Bearer {}")),
            "JWT": (lambda: _jwt(rng), ("{}", "Bearer {}", 'token: "{}"')),
            "PEM": (lambda: _pem(rng), ("{}", "key:\n{}", "cert = '''{}'''")),
            "URL": (lambda: _url(rng, fake), ("{}", "DATABASE_URL={}", "see {} for it")),
        }
        draw, phrases = draws[kind]
        return draw(), rng.choice(phrases)

    def _dni(self, fake: Faker) -> str:
        return str(self.rng.choice((fake.nif, fake.nie))())
