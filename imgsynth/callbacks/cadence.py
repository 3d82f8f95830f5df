"""When something is due, counted in images."""

from imgsynth.methods.base import Method
from imgsynth.types import Count, parse_count

_WITHOUT_LENGTH = 100_000


class Cadence:
    """Due at the first update boundary at or beyond each multiple of a number of images.

    Follows from the counts of images alone, so a resumed run is due where the uninterrupted one
    was.

    Args:
        every: Images from one time to the next. None divides the run's length into ``parts``, or
            takes 100,000 for a run without a length.
        parts: How often in a run, if ``every`` is None.

    Raises:
        ValueError: If ``every`` is no positive count.
    """

    def __init__(self, every: Count | None, parts: int) -> None:
        self.every = None if every is None else parse_count(every, "every")
        if self.every == 0:
            raise ValueError("every must be at least 1 image, or None to follow the length.")
        self.parts = parts
        self._seen = 0

    def start(self, method: Method) -> None:
        """Begin at the method's present count."""
        self._seen = method.images_seen

    def due(self, method: Method) -> bool:
        """Say whether a multiple was reached since the last call or :meth:`start`."""
        every = self.every
        if every is None:
            total = method.total_images
            every = max(1, -(-total // self.parts)) if total else _WITHOUT_LENGTH
        before, self._seen = self._seen, method.images_seen
        return before // every < self._seen // every
