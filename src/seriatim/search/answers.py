"""The final answer of a chain of thought, in the one form in which answers are compared.

The convention is GSM8K's (Cobbe et al., arXiv:2110.14168): the answer stands after `####`, with
commas between thousands.
"""

import re

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(rf"\$?(?:(?<![\w.)])-)?\$?(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)")


def final_answer(text: str) -> str | None:
    """The number or, without one, the rest of the line after the last `####`; where there is no
    `####`, the last number of the text; None if there is none.

    Example:
        >>> final_answer("48 + 24 = 72 clips. #### 72"), final_answer("So $1,250.50.")
        ('72', '1250.5')
    """
    _, marked, rest = text.rpartition("####")
    if marked:
        line = rest.partition("\n")[0].strip()
        number = _NUMBER.match(line)
        return canonical(number[0] if number else line) or None
    numbers = _NUMBER.findall(text)
    return canonical(numbers[-1]) if numbers else None


def canonical(answer: str) -> str:
    """An answer without what does not tell it from others: spaces around it and, of a number, a
    dollar sign, commas between thousands, zeros that add nothing, a full stop at the end.

    Example:
        >>> canonical(" $1,000.00. "), canonical("007"), canonical("-0.0"), canonical("yes ")
        ('1000', '7', '0', 'yes')
    """
    answer = answer.strip()
    number = answer.rstrip(".")
    if not _NUMBER.fullmatch(number):
        return answer
    whole, _, part = number.lstrip("$-").replace(",", "").partition(".")
    value = ".".join(filter(None, [whole.lstrip("0") or "0", part.rstrip("0")]))
    return f"-{value}" if "-" in number and value != "0" else value
