"""What precision or recall alone would hide: images that lack variety, and images that scatter."""

from collections.abc import Mapping
from math import sqrt

_LEAST = 0.02
_SIGMAS = 4


def alarm(
    scores: Mapping[str, float],
    floor: Mapping[str, float] | None = None,
    before: Mapping[str, float] | None = None,
    *,
    num: int,
) -> str | None:
    """Say in a sentence if precision and recall part ways, as one of them then misleads.

    Two things are told: *lack of variety* (blur, one class, many images alike), where precision
    is as high as that of real images but recall or coverage is below theirs, or where since the
    evaluation before precision rose and recall fell; and *scatter* (noise), where recall is above
    and precision below that of real images. A difference counts from 0.02 and from 4 standard
    deviations of two binomial shares. (19 sets of 1000 held-out CIFAR-10 images deviated by 0.012,
    0.015 and 0.005 in precision, recall and coverage, where the binomial says 0.014, 0.014 and
    0.005; of their 342 pairs none is told, with 3 deviations 2 would be.)

    Measured, with SqueezeNet's features of 1500 CIFAR-10 images (left) and with the pixels of
    890 handwritten digits (right; 460 of half the classes, 91 of one), each against as many other
    real images as at first:

    ==================  =========  ======  ========  =========  ======  ========
    images              precision  recall  coverage  precision  recall  coverage
    ==================  =========  ======  ========  =========  ======  ========
    held-out real       0.73       0.74    0.96      0.89       0.90    0.96
    blur, 0.5 pixels    0.82 *     0.62    0.98      0.93 *     0.11    0.92
    blur, 1 (0.8)       0.89 *     0.16    0.84      0.42       0.00    0.21
    one class           0.71 *     0.32    0.40      0.95 *     0.10    0.11
    half the classes    0.75 *     0.66    0.92      0.89 *     0.52    0.51
    copies of 10        0.70 *     0.00    0.03      0.90 *     0.00    0.06
    noise, 0.05         0.46       0.64    0.44      0.87       0.90    0.94
    noise, 0.2          0.02       0.01    0.01      0.19 *     0.99    0.32
    ==================  =========  ======  ========  =========  ======  ========

    An asterisk marks what is told. Strong blur of digits and noise before a network are not told:
    there every score falls, and none misleads. Each of CIFAR-10's classes alone is told (1000
    images; precision from 0.67 to 0.84). What has the signature of noise in pixels has none in
    such features, and in 64 principal components noise of 0.2 passes for lack of variety: look at
    the images.

    Args:
        scores: ``precision`` and ``recall``, and ``coverage`` if there is one.
        floor: The same of held-out real images in place of generated ones, as many, against the
            same reference.
        before: The same of the evaluation before.
        num: Images on each side (the smaller number if they differ).

    Returns:
        A sentence, or None. None too if precision and recall both rose since ``before``.

    Raises:
        ValueError: If precision or recall is missing, or ``num`` is below 1.

    Example:
        >>> real, blurred = {"precision": 0.73, "recall": 0.74}, {"precision": 0.89, "recall": 0.16}
        >>> print(alarm(blurred, floor=real, num=1500))
        Precision 0.89 is no lower than that of real images (0.73), but their recall of 0.74 is not
        reached (0.16): the images lack variety (blurred, alike or of few kinds).
        >>> alarm(real, floor=real, num=1500) is None
        True
    """
    for given in (scores, floor, before):
        if given is not None and not {"precision", "recall"} <= given.keys():
            raise ValueError(
                "An alarm compares precision and recall with those of real images or of before, "
                f"got {', '.join(given) or 'no scores'}; evaluate both."
            )
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}.")
    if before is not None and all(scores[k] > before[k] for k in ("precision", "recall")):
        return None
    since = None if before is None else _narrowed(scores, floor, before, num)
    return since or (None if floor is None else _against(scores, floor, num))


def _narrowed(
    scores: Mapping[str, float],
    floor: Mapping[str, float] | None,
    before: Mapping[str, float],
    num: int,
) -> str | None:
    """Compare with the evaluation before.

    Noisy images have more recall than real ones, so a fall is bad only where it ends below.
    """
    rose = _below(before, scores, "precision", num)
    fell = _below(scores, before, "recall", num)
    if not (rose and fell) or (floor is not None and not _below(scores, floor, "recall", num)):
        return None
    return (
        f"Precision rose from {before['precision']:.2f} to {scores['precision']:.2f} while recall "
        f"fell from {before['recall']:.2f} to {scores['recall']:.2f}: the images lose variety "
        "(blurred, alike or of fewer kinds)."
    )


def _against(scores: Mapping[str, float], floor: Mapping[str, float], num: int) -> str | None:
    """Compare with held-out real images."""
    precision = f"Precision {scores['precision']:.2f}"
    of_real = f"that of real images ({floor['precision']:.2f})"
    if _below(scores, floor, "precision", num):
        if not _below(floor, scores, "recall", num):
            return None
        return (
            f"{precision} is below {of_real}, but recall {scores['recall']:.2f} is above theirs "
            f"({floor['recall']:.2f}): the images scatter around the real ones (noise or "
            "artefacts), which is no variety."
        )
    for name in ("recall", "coverage"):
        if name in scores and name in floor and _below(scores, floor, name, num):
            return (
                f"{precision} is no lower than {of_real}, but their {name} of {floor[name]:.2f} is "
                f"not reached ({scores[name]:.2f}): the images lack variety (blurred, alike or of "
                "few kinds)."
            )
    return None


def _below(scores: Mapping[str, float], other: Mapping[str, float], name: str, num: int) -> bool:
    """Say whether a share is below another by more than chance."""
    shares = (scores[name], other[name])
    deviation = sqrt(sum(p * (1 - p) / num for p in shares))
    return shares[1] - shares[0] > max(_LEAST, _SIGMAS * deviation)
