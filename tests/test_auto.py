"""``--space auto``: the rules hold for any images, machine and time, and a run is made of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from tests.conftest import Call
from tuner.config import DataConfig, ModelConfig, SearchConfig, TrialConfig
from tuner.data.splits import load_splits
from tuner.data.survey import Survey, survey
from tuner.errors import DataError
from tuner.models.catalogue import find_weights
from tuner.run.run import Run
from tuner.space import RandomTrial, load_space
from tuner.training.initial_weights import weights_at_hand
from tuner.tuning.planning import make_space
from tuner.tuning.planning.auto import (
    LONGEST_SHARE,
    SIDES,
    SMALL,
    TRAININGS,
    TRANSFER,
    Machine,
    RecipeNetwork,
    Settings,
    batch_size_of,
    choose,
    recipes_of,
    sides_of,
    space_of,
)
from tuner.tuning.planning.make_space import LEAST_TRIALS, base_of, families_of, most_trials
from tuner.tuning.planning.measure import Measured
from tuner.tuning.planning.simulated import TrialCost
from tuner.tuning.resources import CapacityPlan, TrialResources

CPU = Machine(slots=2, has_gpu=False, seconds=600.0)


def images_of(num_train: int, side: int = 32) -> Survey:
    return Survey(num_train=num_train, num_val=100, num_classes=10, channels=3, side=side)


def networks_of(has_gpu: bool = False) -> list[RecipeNetwork]:
    return [
        RecipeNetwork(recipe=recipe, name=name)
        for recipe in recipes_of(0, has_gpu)
        for name in families_of(base_of(recipe))
    ]


def timed(seconds: float) -> Callable[[RecipeNetwork, int], float]:
    """Return epochs of so many seconds at 32 pixels, and by the area at others."""
    return lambda network, side: seconds * (side / 32) ** 2


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("budget", [60.0, 1800.0, 86_400.0])
@pytest.mark.parametrize("num_train", [20, 840, 45_000])
@pytest.mark.parametrize(("side", "seconds"), [(8, 0.01), (100, 2.0), (4000, 100.0)])
def test_what_is_chosen_fits_the_time_or_is_the_quickest(
    num_train: int, side: int, seconds: float, budget: float, has_gpu: bool
) -> None:
    machine = Machine(slots=2, has_gpu=has_gpu, seconds=budget)
    images, sides = images_of(num_train, side), sides_of(side)
    choice = choose(networks_of(machine.has_gpu), timed(seconds), sides, images, machine)
    training = choice.epochs * timed(seconds)(networks_of()[0], choice.side)
    if choice.epochs >= choice.recipe.enough_epochs(num_train):
        assert training <= LONGEST_SHARE * machine.seconds * 1.01 or choice.epochs == 1
    else:
        assert choice.side == sides[-1]
    assert choice.epochs <= choice.recipe.most_epochs(num_train)
    assert choice.epochs < 4 or choice.epochs % 4 == 0
    plain = space_of(choice, base_of(choice.recipe), is_mirrored=True)
    space = load_space(Path("auto"), text=yaml.safe_dump(plain, sort_keys=False))
    config = space.sample(RandomTrial(0), epochs=choice.epochs, seed=0)
    assert config.batch_size in (choice.batch_size, 2 * choice.batch_size)


def test_more_time_means_larger_images_and_more_epochs() -> None:
    images = images_of(840, side=500)
    choices = [
        choose(
            networks_of(),
            timed(2.0),
            SIDES,
            images,
            Machine(slots=2, has_gpu=False, seconds=60.0 * minutes),
        )
        for minutes in (1, 10, 60, 600)
    ]
    sides = [choice.side for choice in choices]
    assert sides == sorted(sides)
    assert sides[0] < sides[-1]
    small = [
        choose(
            networks_of(),
            timed(2.0),
            (32,),
            images,
            Machine(slots=2, has_gpu=False, seconds=60.0 * minutes),
        )
        for minutes in (1, 10, 60, 600)
    ]
    epochs = [choice.epochs for choice in small]
    assert epochs == sorted(epochs)
    assert small[1].trainings >= TRAININGS


def test_pretrained_networks_go_before_others_but_for_those_that_are_too_slow() -> None:
    names = ("resnet18", "resnet50", "convnext_tiny")
    networks = [*(RecipeNetwork(recipe=TRANSFER, name=name) for name in names), *networks_of()]

    def seconds_of(network: RecipeNetwork, side: int) -> float:
        return {"resnet18": 3.0, "convnext_tiny": 4.0}.get(network.name, 100.0)

    choice = choose(networks, seconds_of, (96, 32), images_of(840, side=300), CPU)
    assert (choice.names, choice.side) == (("resnet18", "convnext_tiny"), 96)
    plain = space_of(choice, base_of(TRANSFER), is_mirrored=True)
    space = load_space(Path("auto"), text=yaml.safe_dump(plain))
    assert dict(space.rows())["model.pretrained.name"] == "one of resnet18, convnext_tiny"
    assert plain["space"]["model"]["pretrained"]["image_size"] == 96


@pytest.mark.parametrize(("num_train", "batch_size"), [(20, 16), (840, 32), (45_000, 64)])
def test_a_batch_leaves_steps_in_an_epoch(num_train: int, batch_size: int) -> None:
    assert batch_size_of(num_train, has_gpu=False) == batch_size


def test_pixels_grow_with_the_images_and_digits_are_not_mirrored() -> None:
    (recipe,) = recipes_of(0, has_gpu=False)
    choice = Settings(
        recipe=recipe, names=("speednet",), side=128, epochs=9, batch_size=32, trainings=12.0
    )
    plain = space_of(choice, base_of(recipe), is_mirrored=False)
    assert plain["space"]["augment"]["crop"] == {"choice": [8, 16]}
    assert plain["space"]["augment"]["flip"] is False
    assert plain["space"]["model"]["speednet"]["stages"] == 5


def test_a_survey_counts_what_a_search_would_train_on(tmp_path: Path) -> None:
    for name, number in (("a", 30), ("b", 40)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(number):
            image = Image.new("RGB", (90, 60), (index, 0, number))
            image.save(tmp_path / "photos" / name / f"{index}.png")
    config = DataConfig(source=str(tmp_path / "photos"))
    found = survey(config, tmp_path)
    splits = load_splits(config, tmp_path)
    assert (found.num_train, found.num_val) == (len(splits.train), len(splits.val))
    assert (found.num_classes, found.channels, found.side) == (2, 3, 60)


def test_weights_are_at_hand_where_their_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights_at_hand(["resnet18", "resnet50"]) == []
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / find_weights("resnet18", "DEFAULT").url.rpartition("/")[2]).touch()
    (folder / "other.pth").touch()
    assert weights_at_hand(["resnet18", "resnet50"]) == ["resnet18"]


def test_as_many_trials_as_end_in_the_time() -> None:
    search = SearchConfig(epochs=8, grace=2, reduction=2)
    cost = TrialCost(
        config=TrialConfig(model=ModelConfig("cnn"), epochs=8),
        resources=TrialResources(cpus=1, gpus=0),
        setup_seconds=0.0,
        epoch_seconds=1.0,
        write_seconds=0.0,
    )
    few, many = (
        most_trials([cost], search, seconds, lambda trials: len(trials) <= 2)
        for seconds in (60.0, 240.0)
    )
    # A trial of a quarter, one in two of half and one in four of all: 4 seconds, two at a time.
    assert 20 <= few <= 32
    assert 3 * few <= many <= 5 * few
    assert most_trials([cost], search, 1.0, lambda trials: len(trials) <= 2) == LEAST_TRIALS


@pytest.mark.parametrize(
    "word",
    [
        # The baselines differ in this alone.
        "space.augment.policy=none",
        "space.label_smoothing.choice=[0.0,0.1]",
        "space.optimizer.muon.lr=0.2",
        "space.model={resnet: {depth: 10}}",
        " space={model: {resnet: {depth: 10}}, batch_size: {choice: [32, 64]}}",
    ],
)
def test_what_the_user_settles_goes_before_the_rules(
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretended_nodes: list[dict[str, float]],
) -> None:
    choice = Settings(
        recipe=SMALL, names=("speednet",), side=32, epochs=9, batch_size=32, trainings=12.0
    )
    share = TrialResources(cpus=1, gpus=0)
    request: Any = SimpleNamespace(storage=tmp_path, data=DataConfig(source="photos"))
    maker = make_space._Maker(
        request=request,
        overrides=[word],
        images=images_of(840),
        capacity=CapacityPlan(default=share, count=2),
        machine=CPU,
        console=Console(),
    )
    space = maker.load(space_of(choice, base_of(SMALL), is_mirrored=True))
    assert space.baseline
    config = maker.config_of(RecipeNetwork(recipe=SMALL, name="speednet"), 32)
    measured = Measured(config=config, resources=share, epoch_seconds=1.0)
    maker.measured[RecipeNetwork(recipe=SMALL, name="speednet")] = 32, measured
    monkeypatch.setattr(make_space, "most_trials", lambda costs, *others: len(costs))
    assert maker.trials(choice, space) == make_space.DRAWS


def test_what_no_search_could_load_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for name, number in (("a", 30), ("b", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (8, 8), (index, 0, number)).save(
                tmp_path / "photos" / name / f"{index}.png"
            )
    with pytest.raises(DataError, match="photos/b: needs at least 3 images"):
        survey(DataConfig(source=str(tmp_path / "photos")), tmp_path)


@pytest.mark.ray
def test_a_search_of_data_alone_makes_its_space_and_goes_on_with_it(
    session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("search", "--data", "digits", "--data-dir", "data", "--name", "made")
    limits = ("--time-budget", "10m", "--trials", "2", "--epochs", "1")
    said = ("--val-fraction", "0.2", "--image-size", "9", "space.label_smoothing=0.1")
    code, _, err = call(*words, *limits, *said)
    assert code == 0, err
    run = Run.open(Path("runs/made"))
    text = (run.path / "space.yaml").read_text()
    assert text.strip() in err
    space = load_space(run.path / "space.yaml", text=text)
    lines = space.description.splitlines()
    assert "1150 to train on, 288 to validate on" in lines[1]
    # Whoever copies the space searches the same images.
    assert space.data == {"val_fraction": 0.2, "image_size": 9}
    assert run.record.num_val == 288
    assert "Trials: 2, as asked." in lines
    assert (space.search.trials, space.search.epochs, space.dataset) == (2, 1, "digits")
    for trial in run.trials():
        assert trial.config.label_smoothing == 0.1
        assert not trial.config.augment.flip
    code, _, err = call(*words, "--space", "auto", "--resume", "--trials", "3")
    assert code == 0, err
    assert "measured" not in err
    assert (run.path / "space.yaml").read_text() == text.replace("trials: 2", "trials: 3")
    assert len(run.trials()) == 3


def test_a_space_cannot_be_made_without_data(call: Call) -> None:
    code, _, err = call("search", "--space", "auto")
    assert code == 2
    assert "name them with --data" in err
    code, _, err = call("search")
    assert code == 2
    assert "--data" in err
