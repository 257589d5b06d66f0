r"""Distinguished names: read (RFC 4514), compared by their own rules, and a value made safe for one.

Two that are the same to a directory compare equal here: attribute types and values without case, spaces
around `,` `+` `=` and runs of them folded, `\2C` as `\,`, the parts of a multi-valued RDN in any order. The
other way round this is never laxer than a directory: otherwise one user could be taken for another.
"""

import re
import unicodedata

Rdn = frozenset[tuple[str, str]]
Dn = tuple[Rdn, ...]  # comparable; most specific first

_PART = re.compile(
    r" *([A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)+) *="
    r'((?:[^\\"+,;<>\0]|\\[ "#+,;<=>\\]|\\[0-9A-Fa-f]{2})*)',
    re.ASCII,
)
_ESCAPE = re.compile(r'\\([ "#+,;<=>\\])|((?:\\[0-9A-Fa-f]{2})+)')
_UNSAFE = re.compile(r'[\0"#+,;<=>\\]|^ | $')


def parse_dn(text: str) -> Dn:
    """What a dn names, in a comparable form. Raises ValueError that says where it is none."""
    rdns: list[set[tuple[str, str]]] = [set()]
    position = 0
    while True:
        part = _PART.match(text, position)
        if part is None:
            raise ValueError(f"expected an attribute and = at character {position + 1}")
        attribute, value = part[1].lower(), part[2]
        if value.lstrip(" ").startswith("#"):
            raise ValueError(f"{value.strip()!r}: a value in hexadecimal (BER), expected it as text")
        if not value.strip(" "):
            raise ValueError(f"expected a value at character {part.end() + 1}")
        rdns[-1].add((attribute, _comparable(_unescaped(value))))
        position = part.end() + 1
        separator = text[part.end() : position]
        if not separator:
            return tuple(frozenset(rdn) for rdn in rdns)
        if separator == ",":
            rdns.append(set())
        elif separator != "+":
            raise ValueError(rf"{separator!r} at character {position}: expected a \ before it")


def _unescaped(value: str) -> str:
    def replacement(match: re.Match[str]) -> str:
        return match[1] or bytes.fromhex(match[2].replace("\\", "")).decode()

    return _ESCAPE.sub(replacement, value)


def _comparable(value: str) -> str:
    value = re.sub(" +", " ", value).strip(" ")
    # Signs such as U+212A (Kelvin) have a letter as their lower case, which to some directories is another
    # name. They are never in this form; neither are letters with marks of their own, which compare as is.
    return value.lower() if unicodedata.is_normalized("NFC", value) else value


def escape_value(value: str) -> str:
    """A value, such as a user's name, as it stands in a dn: it can end neither the value nor the RDN."""
    return _UNSAFE.sub(lambda match: f"\\{ord(match[0]):02X}", value)
