"""Personal data out of prompts and answers: `Sanitizer` cleans them, or they are `Withheld`."""

from kvquant.shadow.pii.budget import REASONS, Withheld
from kvquant.shadow.pii.finding import Finder
from kvquant.shadow.pii.sanitizer import Cleaned, Sanitizer

__all__ = ["REASONS", "Cleaned", "Finder", "Sanitizer", "Withheld"]
