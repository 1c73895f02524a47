"""Bounds on text that is read in one go, while all threads wait; what of JSON is counted before."""

PIECE_BYTES = 1 << 20
"""Of a body that is counted or unpacked at a time: other threads wait for each."""
# Lists and objects of a JSON body, or what looks like one in a text. Hundreds of thousands are read
# in half a second, and the interpreter looks for rings in them, while no other thread runs.
MOST_CONTAINERS = 1 << 16
# Names in its objects, or colons in a text. A million different ones are read in three seconds.
MOST_NAMES = 1 << 16
# Of a header with parameters: to read them takes a time that grows with its square.
MOST_HEADER_CHARACTERS = 2000


def count_values(body: bytes | bytearray) -> int:
    """How many values JSON has at most, by what stands between them."""
    return count_containers(body) + _count(body, b",")


def count_containers(body: bytes | bytearray) -> int:
    """How many lists and objects JSON has at most."""
    return _count(body, b"{") + _count(body, b"[")


def count_names(body: bytes | bytearray) -> int:
    """How many names the objects of JSON have at most."""
    return _count(body, b":")


def _count(body: bytes | bytearray, mark: bytes) -> int:
    """Count a piece at a time: other threads wait for each."""
    return sum(body.count(mark, at, at + PIECE_BYTES) for at in range(0, len(body), PIECE_BYTES))
