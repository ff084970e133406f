"""What the scikit-learn estimators learn, on held-out rows: `python asv_benchmarks/sklearn_table.py [--seeds 10-19]`."""

import argparse
import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from sona.ext.sklearn import AdapterTransformer, BanditClassifier


def sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {"digits": load_digits(return_X_y=True)}
    folder = os.environ.get("SONA_DATA")
    if folder is None:
        print("SONA_DATA is not set: the text sets are left out")
        return found
    for name, file in (("TREC, 6 classes", "trec_minilm384.npz"), ("20 Newsgroups", "ng20_minilm384.npz")):
        with np.load(Path(folder) / file) as data:
            found[name] = (data["X"].astype(np.float32), data["y"])
    return found


def models(seed: int) -> dict[str, object]:
    return {
        "BanditClassifier, 1 pass": BanditClassifier(epochs=1, random_state=seed),
        "BanditClassifier, 5 passes": BanditClassifier(random_state=seed),
        "LogisticRegression (reads the labels)": LogisticRegression(C=10, max_iter=500),
        "NearestCentroid": NearestCentroid(),
        "AdapterTransformer + NearestCentroid": make_pipeline(AdapterTransformer(random_state=seed), Normalizer(), NearestCentroid()),
        "5 neighbours": KNeighborsClassifier(),
        "AdapterTransformer + 5 neighbours": make_pipeline(AdapterTransformer(random_state=seed), Normalizer(), KNeighborsClassifier()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="10-19")
    low, high = map(int, parser.parse_args().seeds.split("-"))
    found = sets()
    scores: dict[str, dict[str, list[float]]] = {}
    for name, (X, y) in found.items():
        for seed in range(low, high + 1):
            train, test, labels, truth = train_test_split(X, y, test_size=0.2, random_state=seed, stratify=y)
            scale = make_pipeline(StandardScaler(with_std=name == "digits"), Normalizer()).fit(train)
            for model, estimator in models(seed).items():
                right = estimator.fit(scale.transform(train), labels).score(scale.transform(test), truth)
                scores.setdefault(model, {}).setdefault(name, []).append(right)
    print(f"| accuracy on the held-out fifth, seeds {low} to {high} | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for model, by_set in scores.items():
        print(f"| {model} | " + " | ".join(f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in by_set.values()) + " |")


if __name__ == "__main__":
    main()
