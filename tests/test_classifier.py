"""The classifier of samples, beside scikit-learn's."""

import numpy as np
import pytest

from slimdpm.metrics.classifier import Classifier


def test_it_is_the_logistic_regression_of_scikit_learn(tmp_path):
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    features = (rng.normal(size=(240, 5)) + 1.5 * rng.normal(size=(3, 5))[labels]).astype(np.float32)
    classifier = Classifier.fit(features, labels, decay=1e-2)
    scaled = (features - features.mean(0)) / features.std(0)
    theirs = linear.LogisticRegression(C=1 / (2 * 240 * 1e-2), tol=1e-8, max_iter=1000).fit(scaled, labels)
    np.testing.assert_allclose(classifier.weight - classifier.weight.mean(0), theirs.coef_, atol=2e-3)
    assert (classifier.named(features) == theirs.predict(scaled)).mean() > 0.99
    assert classifier.accuracy(features, labels) == (classifier.named(features) == labels).mean()
    classifier.save(tmp_path / "classifier.safetensors")
    again = Classifier.load(tmp_path / "classifier.safetensors")
    assert (again.named(features) == classifier.named(features)).all()
