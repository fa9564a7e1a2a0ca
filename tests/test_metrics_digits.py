"""The measures on real digits: each must see the faults it claims to see, and be repeatable.

Samples are one half of the real images, damaged; the other half is the reference. So the
undamaged samples are perfect, and no sample is a copy of a reference image.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdgen.data import load
from kdgen.errors import CheckpointError, MetricError
from kdgen.metrics import (
    MEASURES,
    Measure,
    classifier_for,
    evaluate,
    store,
    table,
    train_classifier,
)
from kdgen.metrics.floors import real_sets

N = 800


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def classifier(digits):
    return classifier_for(digits)


@pytest.fixture(scope="module")
def halves(digits):
    """800 samples, and about 900 real images that they are measured against."""
    first, second = real_sets(len(digits), len(digits), digits.labels, seed=1).halves
    samples = digits.subset(first)
    keep = torch.linspace(0, len(samples) - 1, N).long()
    return samples.subset(keep), digits.subset(second)


def measured(samples, labels, reference, classifier, **options) -> dict[str, Measure]:
    found = evaluate(samples, reference, labels, classifier=classifier, **options)
    return {m.kind if m.kind != "FD" else m.name.split("-")[0]: m for m in found}


@pytest.fixture(scope="module")
def clean(halves, classifier):
    samples, reference = halves
    return measured(samples.pixels, samples.labels, reference, classifier)


FD, FD_PIXELS = "FD[digits", "FD[pixel"


def levels(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def blur(x, labels):
    return levels(F.avg_pool2d(F.pad(x.float(), (1, 1, 1, 1)), 3, stride=1))


def noise(x, labels):
    return levels(x + 30 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))


def brighter(x, labels):
    return levels(x.float() + 30)


def without_a_class(x, labels):
    """Every seven becomes some other digit."""
    keep = (labels != 7).nonzero()[:, 0]
    fill = keep[torch.linspace(0, len(keep) - 1, int((labels == 7).sum())).long()]
    y = x.clone()
    y[labels == 7] = x[fill]
    return y


def collapsed(x, labels):
    """Ten images of each class, again and again."""
    y = x.clone()
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        y[members] = x[members[torch.arange(len(members)) % 10]]
    return y


def upside_down(x, labels):
    return x.flip(2)


SEEN = {
    blur: [FD, FD_PIXELS, "MMD", "precision", "label agreement", "power spectrum", "histogram"],
    noise: [FD, FD_PIXELS, "MMD", "precision", "power spectrum", "histogram", "sliced Wasserstein",
            "nearest training image"],
    brighter: [FD, FD_PIXELS, "histogram", "sliced Wasserstein"],
    without_a_class: [FD, FD_PIXELS, "label agreement"],
    collapsed: [FD, FD_PIXELS, "MMD", "recall"],
    upside_down: [FD, FD_PIXELS, "MMD", "label agreement"],
}  # fmt: skip


def test_real_images_score_near_the_floor(clean):
    assert clean[FD].value < 1.5 * clean[FD].floor
    assert clean[FD_PIXELS].value < 1.5 * clean[FD_PIXELS].floor
    assert clean["MMD"].interval[0] < 0 < clean["MMD"].interval[1]
    assert clean["label agreement"].value > 0.98
    assert clean["nearest training image"].value == pytest.approx(1, abs=0.1)
    for name in ("precision", "recall"):
        assert clean[name].value == pytest.approx(clean[name].floor, abs=0.06)


@pytest.mark.parametrize("fault", SEEN, ids=lambda f: f.__name__)
def test_a_fault_is_seen_by_the_measures_that_claim_to_see_it(fault, halves, clean, classifier):
    samples, reference = halves
    damaged = fault(samples.pixels, samples.labels)
    found = measured(damaged, samples.labels, reference, classifier)
    for name in SEEN[fault]:
        before, after = clean[name], found[name]
        worse = (
            before.value - after.value if after.better == "higher" else after.value - before.value
        )
        spread = max(before.spread, after.spread)
        assert worse > 3 * spread, f"{name}: {before.value:.4g} -> {after.value:.4g} ± {spread:.2g}"


def test_the_histogram_is_blind_to_structure_and_the_spectrum_to_brightness(halves, clean):
    """What a caveat says a measure cannot see, it does not see."""
    samples, reference = halves
    flipped = evaluate(upside_down(samples.pixels, None), reference, measures=["histogram"])[0]
    assert flipped.value == pytest.approx(clean["histogram"].value, rel=0.5)
    lighter = samples.pixels // 2 + 10
    spectra = [
        evaluate(x, reference, measures=["power spectrum"])[0].value
        for x in (lighter, lighter + 100)
    ]
    assert spectra[0] == pytest.approx(spectra[1], abs=1e-6)


def test_copies_of_training_images_show_in_the_nearest_neighbour_ratio(halves):
    _, reference = halves
    copies = reference.pixels[torch.arange(N) % 200]
    found = evaluate(copies, reference, measures=["nearest training image"])[0]
    assert found.value < 0.01
    assert found.floor == pytest.approx(1, abs=0.1)


def test_the_training_set_itself_has_distance_zero_and_the_floor_is_above(digits, classifier):
    found = measured(
        digits.pixels, digits.labels, digits, classifier, measures=["FD features", "FD pixels"]
    )
    for name in (FD, FD_PIXELS):
        assert found[name].value < 1e-6
        assert found[name].n == 1797
        assert found[name].half_n == 896
        assert 1.7 < found[name].half_floor / found[name].floor < 2.6, "the bias falls as 1/n"


def test_the_order_of_the_samples_does_not_matter(halves, classifier, clean):
    samples, reference = halves
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    shuffled = samples.subset(order)
    found = measured(shuffled.pixels, shuffled.labels, reference, classifier)
    for name in set(clean) - {"precision", "recall"}:  # those pick half of the samples
        assert found[name].value == pytest.approx(clean[name].value, rel=1e-4, abs=1e-6), name
        assert found[name].floor == pytest.approx(clean[name].floor, rel=1e-4, abs=1e-6), name


def test_features_do_not_depend_on_the_batch_they_were_computed_in(digits, classifier):
    whole = classifier.features(digits.pixels[:300], batch=300)
    chunks = classifier.features(digits.pixels[:300], batch=7)
    torch.testing.assert_close(whole, chunks, rtol=1e-4, atol=1e-4)


def test_floats_with_a_stated_range_give_the_same_numbers(halves, clean):
    samples, reference = halves
    floats = samples.pixels.float() / 127.5 - 1
    options = dict(value_range=(-1, 1), measures=["histogram"])
    found = evaluate(floats, reference, samples.labels, **options)[0]
    assert found.value == clean["histogram"].value


def test_without_labels_or_classifier_what_needs_them_is_left_out(halves, classifier):
    samples, reference = halves
    kinds = {m.kind for m in evaluate(samples.pixels[:200], reference)}
    assert not kinds & {"MMD", "precision", "recall", "label agreement"}
    kinds = {m.kind for m in evaluate(samples.pixels[:200], reference, classifier=classifier)}
    assert {"MMD", "precision", "recall"} <= kinds
    assert "label agreement" not in kinds


def test_every_measure_names_its_n_and_floor_and_none_is_called_fid(clean):
    assert len(clean) == len(MEASURES) + 1  # precision and recall are two
    for m in clean.values():
        assert f"n={m.n}" in m.name
        assert m.floor_of
        assert m.caveat
        assert "FID" not in m.name
    assert clean[FD].name == "FD[digits-classifier-64, n=800]"
    assert classifier_digest(clean[FD]) == classifier_digest(clean["MMD"])
    assert "none is FID" in table(list(clean.values()))


def classifier_digest(measure: Measure) -> str:
    name, digest = measure.features.split(" sha256:")
    assert name == "digits-classifier-64"
    return digest


def test_what_cannot_be_measured_is_refused_in_words(digits, classifier):
    few, labels = digits.pixels[:50], digits.labels[:50]
    refusals = [
        (dict(samples=digits.pixels.repeat(2, 1, 1, 1)), "n=3,594 samples against 1,797"),
        (dict(samples=few, measures=["FD pixels"]), r"n=50 images for 64 features"),
        (dict(samples=few, measures=["FID"]), "no measure 'FID'.*FD features"),
        (dict(samples=few, measures=["MMD"]), "'MMD' needs a classifier"),
        (dict(samples=few, labels=labels[:9]), r"labels have shape \(9,\)"),
        (dict(samples=few.repeat(1, 3, 1, 1)), r"shape \(3, 8, 8\) against \(1, 8, 8\)"),
        (dict(samples=few, labels=labels, measures=["label agreement"]), "needs a classifier"),
    ]
    for arguments, text in refusals:
        with pytest.raises(MetricError, match=text) as error:
            evaluate(reference=digits, **arguments)
        assert error.value.exit_code == 9


# The classifier ------------------------------------------------------------------------------


def test_the_shipped_classifier_is_that_of_the_digits(digits, classifier):
    assert classifier.data == digits.digest
    assert classifier.accuracy > 0.98
    assert classifier.name == "digits-classifier-64"
    right = classifier.predict(digits.pixels) == digits.labels
    assert float(right.double().mean()) > 0.99


def test_features_are_white_over_the_data(digits, classifier):
    features = classifier.features(digits.pixels)
    covariance = torch.cov(features.T)
    assert features.mean(0).abs().max() < 0.2
    assert (covariance - torch.eye(64)).abs().max() < 0.2


def test_training_the_classifier_repeats_to_the_last_bit(digits):
    some = digits.subset(torch.arange(400))
    first, second, other = (train_classifier(some, steps=25, seed=s) for s in (0, 0, 1))
    assert first.digest == second.digest != other.digest
    assert first.held_out == 80


def test_a_classifier_for_other_images_is_trained_once_and_kept(digits, tmp_path, monkeypatch):
    """Colour, 12×10 pixels, 3 classes: the same network in another size."""
    chosen = digits.subset((digits.labels < 3).nonzero()[:, 0])
    pixels = F.interpolate(chosen.pixels.float(), (12, 10)).to(torch.uint8).expand(-1, 3, -1, -1)
    images = replace(chosen, pixels=pixels, classes=3, name="mine", class_names=None)
    cache = tmp_path / "run" / "classifier.safetensors"
    monkeypatch.setattr(store, "train_classifier", lambda x: train_classifier(x, steps=80))
    made = classifier_for(images, cache)
    assert made.accuracy > 0.9
    monkeypatch.setattr(store, "train_classifier", pytest.fail)
    assert classifier_for(images, cache).digest == made.digest
    monkeypatch.undo()
    other = replace(images, pixels=255 - images.pixels)
    monkeypatch.setattr(store, "train_classifier", lambda images: made)
    classifier_for(other, cache)  # the cached one is for other pixels: not used


@pytest.mark.parametrize("size", [8, 16, 20, 32])
def test_a_saved_classifier_computes_the_same_features(size, digits, tmp_path):
    """Networks for different sizes may have equal shapes, but not equal strides."""
    some = digits.subset(torch.arange(100))
    images = replace(some, pixels=F.interpolate(some.pixels.float(), size).to(torch.uint8))
    made = train_classifier(images, steps=2)
    store.save(made, tmp_path / "c.safetensors")
    loaded = store.load((tmp_path / "c.safetensors").read_bytes(), "it")
    assert (loaded.features(images.pixels) == made.features(images.pixels)).all()


def test_a_classifier_needs_labels(digits):
    with pytest.raises(MetricError, match="has no labels"):
        train_classifier(replace(digits, labels=None, classes=0, class_names=None))


def test_damage_to_a_classifier_file_is_noticed(classifier, tmp_path):
    path = tmp_path / "classifier.safetensors"
    store.save(classifier, path)
    content = path.read_bytes()
    assert store.load(content, "it").digest == classifier.digest
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(len(content), (60,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(CheckpointError, match=r"^it: .*expected a classifier"):
            store.load(bytes(flipped), "it")
    with pytest.raises(CheckpointError):
        store.load(content[:1000], "it")
    with pytest.raises(CheckpointError):
        store.load(b"", "it")
