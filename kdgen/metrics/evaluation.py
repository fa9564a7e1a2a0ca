"""All measures of a set of generated images against the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from kdgen.errors import MetricError
from kdgen.metrics import distances, fidelity
from kdgen.metrics.classifier import Classifier, Labelled
from kdgen.metrics.comparison import Comparison, compare
from kdgen.metrics.measure import Measure
from kdgen.metrics.pixels import Range

MEASURES: dict[str, Callable[[Comparison], list[Measure]]] = {
    "FD features": distances.fd_features,
    "FD pixels": distances.fd_pixels,
    "MMD": distances.mmd,
    "precision and recall": fidelity.precision_recall,
    "label agreement": fidelity.label_agreement,
    "sliced Wasserstein": distances.sliced_wasserstein,
    "power spectrum": distances.power_spectrum,
    "histogram": distances.histogram,
    "nearest training image": fidelity.nearest_training_image,
}
ON_FEATURES = ("FD features", "MMD", "precision and recall", "label agreement")


def evaluate(
    samples: Tensor,
    reference: Labelled,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    classifier: Classifier | None = None,
    measures: Sequence[str] | None = None,
    value_range: Range | None = None,
) -> list[Measure]:
    """Measure `samples` (n, C, H, W) against the real images of `reference`.

    `labels` are the classes that the samples were asked to show; with them every real set keeps the
    class shares of the data. `measures` picks from MEASURES; the default is everything the
    arguments allow: feature measures need `classifier` (see classifier_for), label agreement needs
    `labels` too. `seed` picks the real images of the floors, random directions and resamples.

    Raises MetricError wherever a number would mean something else than its name says.
    """
    at = compare(samples, reference, labels, classifier, seed, value_range)
    chosen = _chosen(at, measures)
    return [measure for name in chosen for measure in MEASURES[name](at)]


def _chosen(at: Comparison, measures: Sequence[str] | None) -> list[str]:
    lacking = {name: "a classifier" for name in ON_FEATURES if at.classifier is None}
    if at.labels is None:
        lacking["label agreement"] = "labels"
    if measures is None:
        return [name for name in MEASURES if name not in lacking]
    for name in measures:
        if name not in MEASURES:
            known = ", ".join(MEASURES)
            raise MetricError(f"evaluate: no measure {name!r}; expected some of: {known}.")
        if name in lacking:
            raise MetricError(f"evaluate: {name!r} needs {lacking[name]}, which was not given.")
    return list(measures)
