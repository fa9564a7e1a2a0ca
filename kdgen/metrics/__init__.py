"""Honest measures of generated images that need no network trained elsewhere.

Every number is a Measure: it carries its floor (real images against real images), n, seed and
caveat. None of them is FID.
"""

from kdgen.metrics.agreement import agreement
from kdgen.metrics.classifier import Classifier
from kdgen.metrics.evaluation import MEASURES, evaluate
from kdgen.metrics.fitting import train_classifier
from kdgen.metrics.frechet import Moments, frechet, frechet_distance, moments, pca
from kdgen.metrics.kernel import mmd
from kdgen.metrics.measure import Measure, check_comparable, ratio
from kdgen.metrics.pixels import as_uint8
from kdgen.metrics.store import classifier_for
from kdgen.metrics.straightness import straightness
from kdgen.metrics.table import rows, table

__all__ = [
    "MEASURES",
    "Classifier",
    "Measure",
    "Moments",
    "agreement",
    "as_uint8",
    "check_comparable",
    "classifier_for",
    "evaluate",
    "frechet",
    "frechet_distance",
    "mmd",
    "moments",
    "pca",
    "ratio",
    "rows",
    "straightness",
    "table",
    "train_classifier",
]
