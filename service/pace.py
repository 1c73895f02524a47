"""How long batches take: what Retry-After is told by. Imports nothing of ours."""

from bisect import bisect

# While batches of one size only have been seen: how many images a pass itself is worth.
IMAGES_A_PASS_IS_WORTH = 40


class Pace:
    """How long a batch takes by the number of its images, as measured.

    Sizes are remembered apart, by powers of two: hours of single images do not make forgotten what
    a full batch takes.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}  # images and seconds, means of late

    def measured(self, images: int, seconds: float) -> None:
        """Take note of a batch."""
        size, mean = self._known.get(images.bit_length(), (float(images), seconds))
        self._known[images.bit_length()] = (
            size + 0.2 * (images - size),
            mean + 0.2 * (seconds - mean),
        )

    def seconds(self, images: int) -> float:
        """What a batch of so many images will probably take; 0 before the first was measured."""
        known = sorted(self._known.values())
        if not known:
            return 0.0
        if len(known) == 1:
            size, seconds = known[0]
            each = seconds / (size + IMAGES_A_PASS_IS_WORTH)
        else:
            above = min(max(bisect(known, (images, 0.0)), 1), len(known) - 1)
            (fewer, less), (size, seconds) = known[above - 1], known[above]
            each = min(max((seconds - less) / (size - fewer), 0.0), seconds / size)
        return seconds + each * (images - size)
