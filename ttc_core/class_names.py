"""Names of classes, in the forms in which people keep them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ttc_core.errors import LoadError, shown

MOST_BYTES = 16 << 20
FORMS = (
    "one name a line; or JSON: a list of names, {index: name}, or {name: index} as ImageFolder's "
    "class_to_idx"
)


def read_class_names(path: Path, classes: int) -> tuple[str, ...]:
    """Read the names of a model's classes, in the order of their numbers; FORMS says how.

    Raises:
        LoadError: the file is missing, unreadable, of another form, or has not one name a class.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise LoadError(f"The class names {path} cannot be read: {error.strerror}.") from None
    if len(content) > MOST_BYTES:
        raise LoadError(f"The class names {path} have more than {MOST_BYTES:,} bytes.")
    try:
        text = content.decode("utf-8-sig").strip()
        names = names_of(json.loads(text) if text[:1] in ("[", "{") else text.splitlines())
    except (ValueError, RecursionError) as error:
        why = "it is no JSON" if isinstance(error, json.JSONDecodeError) else error
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else why
        raise LoadError(
            f"{path} holds no class names ({shown(why)}); accepted are {FORMS}."
        ) from None
    if len(names) != classes:
        raise LoadError(
            f"{path} names {len(names):,} classes ({_ends(names)}), and the network has "
            f"{classes:,}; one name for each is expected."
        )
    return names


def first_double(names: Sequence[str]) -> str | None:
    """Tell the first name that two classes have, and which they are; None where none is."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            return f"{shown(repr(name))} is the name of class {seen[name]} and of class {index}"
        seen[name] = index
    return None


def names_of(value: object) -> tuple[str, ...]:
    """The names in a list of them, in {index: name} or in {name: index}, by their index.

    Raises:
        ValueError: it is of another form, an index is missing, or a name is empty.
    """
    if isinstance(value, Mapping):
        value = _in_order(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a list, or names with an index each, are expected")
    names = []
    for index, name in enumerate(value):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of class {index} is {shown(repr(name))}")
        names.append(name.strip())
    return tuple(names)


def _in_order(named: Mapping[object, object]) -> list[object]:
    by_index: dict[int, object] = {}
    for key, value in named.items():
        # In JSON an index in front is text. A class may be called "7": behind it a number tells.
        index, name = (value, key) if _is_index(value) else (key, value)
        if isinstance(index, str) and index.isdecimal():
            index = int(index)
        if not _is_index(index):
            raise ValueError(f"{shown(repr(key))}: {shown(repr(value))} has no index")
        assert isinstance(index, int)
        if index in by_index:
            raise ValueError(f"there are two names of class {index}")
        by_index[index] = name
    missing = next((index for index in range(len(by_index)) if index not in by_index), None)
    if missing is not None:
        raise ValueError(f"there is no name of class {missing}; counting begins at 0")
    return [by_index[index] for index in range(len(by_index))]


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ends(names: tuple[str, ...]) -> str:
    return shown(f"{names[0]} … {names[-1]}" if len(names) > 1 else names[0])
