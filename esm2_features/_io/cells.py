"""Cells of CSV files, which spreadsheets must not take for formulas.

Source: OWASP, "CSV Injection"; an apostrophe in front makes a text of a cell in Excel.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

_FORMULAS = tuple("=+-@\t\r")


def harmless(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would compute.

    Texts of apostrophes and a formula get one more, so that whoever takes one away has the text.
    """
    if not isinstance(value, str) or not value.lstrip("'").startswith(_FORMULAS) or value in "+-":
        return value
    with suppress(ValueError):  # a number is one
        float(value)
        return value
    return f"'{value}"
