"""The estimators keep scikit-learn's contract, learn, and travel as pickles."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import sona
from sona.ext.sklearn import AdapterTransformer, BanditClassifier


@parametrize_with_checks([BanditClassifier(), AdapterTransformer()])
@pytest.mark.filterwarnings("default")
def test_it_is_an_estimator(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(StandardScaler().fit_transform(X).astype(np.float32), y.astype(str), test_size=0.25, random_state=0)


def test_right_or_wrong_alone_teaches_the_classes(digits):
    train, test, labels, truth = digits
    assert BanditClassifier(random_state=0).fit(train, labels).score(test, truth) > 0.85


def test_what_it_predicts_is_what_its_router_would_choose(digits):
    train, test, labels, _ = digits
    model = BanditClassifier(epochs=1, random_state=0).fit(train, labels)
    assert (model.predict(test) == model.classes_[model.router_.predict(test)]).all()


def test_passes_of_fit_are_partial_fits_in_their_order():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 4)), rng.integers(0, 3, 60)
    whole, parts = BanditClassifier(random_state=1).partial_fit(X, y), BanditClassifier(random_state=1)
    for start in range(0, 60, 20):
        parts.partial_fit(X[start : start + 20], y[start : start + 20], classes=[0, 1, 2])
    assert (whole.decision_function(X) == parts.decision_function(X)).all()


@pytest.mark.parametrize("estimator", [BanditClassifier(epochs=1, random_state=0), AdapterTransformer(epochs=1, random_state=0)])
def test_a_pickle_answers_alike_and_learns_on_alike(estimator, digits):
    train, test, labels, _ = digits
    model = clone(estimator).fit(train[:300], labels[:300])
    copy = pickle.loads(pickle.dumps(model))
    answer = "decision_function" if isinstance(model, BanditClassifier) else "transform"
    assert (getattr(model, answer)(test) == getattr(copy, answer)(test)).all()
    for each in (model, copy):
        each.partial_fit(train[300:400], labels[300:400])
    np.testing.assert_allclose(getattr(model, answer)(test), getattr(copy, answer)(test), rtol=0, atol=1e-4)


def test_outcomes_of_live_requests_teach_it_further(digits):
    train, test, labels, truth = digits
    model = BanditClassifier(epochs=1, random_state=0).fit(train[:100], labels[:100])
    before = model.score(test, truth)
    for x, label in zip(train[100:], labels[100:], strict=True):
        decision = model.router_.route(x)
        assert model.router_.feedback(decision.id, float(model.classes_[decision.arm] == label))
    assert model.score(test, truth) > before + 0.1


def test_it_stands_in_a_pipeline_and_a_search(digits):
    train, _, labels, _ = digits
    search = GridSearchCV(make_pipeline(StandardScaler(), BanditClassifier(random_state=0)), {"banditclassifier__epochs": [1, 3]}, cv=2)
    assert search.fit(train[:400], labels[:400]).best_score_ > 0.6


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_an_adapted_space_separates_classes_better(digits):
    train, test, labels, truth = digits
    plain = NearestCentroid().fit(train, labels).score(test, truth)
    adapted = make_pipeline(AdapterTransformer(random_state=0), NearestCentroid()).fit(train, labels).score(test, truth)
    assert adapted > plain


def test_a_transform_is_linear_in_the_length_of_a_row(digits):
    train, test, labels, _ = digits
    model = AdapterTransformer(epochs=1, random_state=0).fit(train[:300], labels[:300])
    np.testing.assert_allclose(model.transform(3 * test), 3 * model.transform(test), rtol=1e-4, atol=1e-4)
    assert not np.allclose(model.transform(test), test)


def test_labels_that_were_not_announced_are_refused_and_nothing_is_learned(digits):
    train, test, labels, _ = digits
    model = BanditClassifier(random_state=0).partial_fit(train[:50], labels[:50], classes=sorted(set(labels)))
    before = model.decision_function(test)
    with pytest.raises(ValueError, match="expected labels among classes"):
        model.partial_fit(train[:2], ["0", "eleven"])
    with pytest.raises(ValueError, match="classes: expected those of the first call"):
        model.partial_fit(train[:2], labels[:2], classes=[*labels, "eleven"])
    assert (model.decision_function(test) == before).all()


def test_a_first_call_that_is_refused_leaves_it_unfitted():
    model = BanditClassifier()
    with pytest.raises(ValueError, match="expected labels among classes"):
        model.partial_fit(np.eye(2), ["z", "a"], classes=["a", "b"])
    assert vars(model) == vars(BanditClassifier())
    model.partial_fit(np.eye(3), ["a", "b", "a"], classes=["a", "b"])


def test_a_router_with_open_decisions_is_still_no_pickle():
    with pytest.raises(sona.SonaTypeError):
        pickle.dumps(sona.Router(["a", "b"], dim=2))


@pytest.mark.parametrize("epochs", [0, -1, 1.5])
def test_passes_are_a_whole_number_of_at_least_one(epochs):
    with pytest.raises(sona.SonaError, match="epochs: expected"):
        BanditClassifier(epochs=epochs).fit(np.eye(4), [0, 1, 0, 1])
