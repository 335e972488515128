"""``data issues``: errors that were made on purpose are found and shown by the user's own files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import Call, record_of, train_trial
from tuner.config import AdamW, DataConfig, ModelConfig, SearchConfig, TrialConfig
from tuner.data.cache import Images
from tuner.data.datasets import load_official
from tuner.data.splits import load_splits
from tuner.ensemble.issues import _duplicate_issues
from tuner.run.run import Run
from tuner.run.run_record import now


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return digits as files: 1,000 to train and validate on, of which 1 in 20 is labelled wrongly.

    One of the 20 test images is a copy.
    """
    folder = tmp_path_factory.mktemp("digits") / "photos"
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if index >= 1020:
            break
        is_wrong = index < 1000 and index % 20 == 0
        part = "train" if index < 1000 else "test"
        name = f"{index:04}-{label}.png"
        path = folder / part / str((label + 3) % 10 if is_wrong else label) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32)).save(path)
    label = digits.target[7]
    copied = Image.open(folder / "train" / str(label) / f"0007-{label}.png")
    copied.save(folder / "test" / str(label) / "copy.png")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Return a run of one trial on these images, validated on 300 of them."""
    data = DataConfig(source=str(folder), image_size=8, val_fraction=0.3)
    splits = load_splits(data, folder.parent / "data")
    record = record_of(
        splits,
        data,
        folder.parent / "data",
        name="digits",
        command="cifar-tune search",
        space="space.yaml",
        search=SearchConfig(trials=1, epochs=12, grace=1),
    )
    space = "space: {model: {cnn: {stages: 2}}}\n"
    run = Run.create(folder.parent / "runs" / "digits", record, space)
    config = TrialConfig(
        model=ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 32}),
        epochs=12,
        batch_size=32,
        optimizer=AdamW(lr=3e-3),
    )
    train_trial(run.trial_path(0), config, splits)
    run.update(status="finished", finished=now())
    return run


def test_wrong_labels_and_copies_are_named_by_file(
    run: Run, folder: Path, tmp_path: Path, call: Call
) -> None:
    table = tmp_path / "issues.csv"
    words = ("data", "issues", "digits", "--storage", str(run.path.parent), "--csv", str(table))
    code, out, err = call(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    splits = load_splits(run.record.data, folder.parent / "data")
    planted = {
        name for name in splits.val_names if not name.endswith(f"-{Path(name).parent.name}.png")
    }
    told = {issue["path"]: issue for issue in found["labels"]}
    hits = planted & told.keys()
    assert found["checked"] == 300
    assert len(hits) >= 0.7 * len(planted)
    assert len(hits) >= 0.5 * len(told)
    for path in hits:
        assert Path(path).exists()
        assert told[path]["given"] == Path(path).parent.name
    assert any(told[path]["suggested"] == path[-5] for path in hits)
    copies = {issue["path"]: issue["original"] for issue in found["duplicates"]}
    copy = next(path for path in copies if path.endswith("copy.png"))
    assert Path(copies[copy]).name.startswith("0007")

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["kind"] == "label"] == list(told)
    assert [reading.by for reading in run.test_readings()] == ["data issues"]

    code, out, err = call(*words[:5])
    assert code == 0, err
    assert f"{len(told)} of 300 labels may be wrong" in out
    code, out, err = call("report", "digits", "--storage", str(run.path.parent))
    assert code == 0, err
    page = (run.path / "report.html").read_text()
    assert 'id="issues"' in page
    assert Path(min(hits)).name in page


def test_test_images_are_compared_with_those_of_the_search_alone(tmp_path: Path) -> None:
    config = DataConfig(source="digits", train_limit=100)
    splits = load_splits(config, tmp_path)
    official = load_official(config, tmp_path, "train")
    assert splits.train_positions is not None
    assert splits.val_positions is not None
    used = [*splits.train_positions.tolist(), *splits.val_positions.tolist()]
    unused = next(position for position in range(len(official.images)) if position not in used)
    copied = [int(splits.train_positions[0]), int(splits.val_positions[0]), unused]
    images = official.images
    test = replace(
        official, images=Images(images=images.images[copied], labels=images.labels[copied])
    )
    found = {issue.original: issue for issue in _duplicate_issues(test, official, splits)}
    trained, validated, other = (f"training image {position}" for position in copied)
    assert found[trained].shown_original == trained
    assert found[validated].shown_original == f"{validated} (validation)"
    assert other not in found
