import itertools
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState

from tuner.config import Metric, TrialConfig
from tuner.errors import UsageError
from tuner.run.trial import EpochMetrics, TrialState
from tuner.space import SearchSpace, load_space
from tuner.space.axes import Branch, Fixed, Group, RandomTrial
from tuner.tuning.sampling.sampler import Sampler, _shuffled
from tuner.tuning.sampling.shown import BEST, MOST
from tuner.tuning.sampling.study import check_study_fits

NUMBERS = """
space:
  model: {cnn: {stages: 2, width: {int: [8, 64]}}}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}, momentum: {float: [0.0, 0.9]}}}
"""
MIXED = """
space:
  model: {cnn: {stages: 2, norm: {choice: [batch, group]}}}
  schedule: {choice: [cosine, one_cycle]}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}}}
"""
BRANCHED = """
space:
  model: {cnn: {stages: 2, width: {int: [8, 64]}}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 1.0], log: true}}
      adamw: {lr: {float: [1.0e-4, 1.0e-2], log: true}}
"""
FINITE = """
space:
  batch_size: {choice: [32, 64]}
  model:
    choice:
      cnn: {stages: {int: [2, 3]}, dropout: {float: [0.0, 0.3], step: 0.1}}
      resnet: {depth: {choice: [10, 18]}}
  optimizer: {sgd: {nesterov: {choice: [true, false]}, momentum: {choice: [0.0, 0.9]}}}
"""
NUM_FINITE = 2 * (2 * 4 + 2) * (2 * 2 - 1)
"""Without Nesterov momentum of nothing, which no optimizer has."""
FITTING = {
    "tpe": BRANCHED,
    "random": BRANCHED,
    "gp": MIXED,
    "cmaes": NUMBERS,
    "grid": FINITE,
}
every_sampler = pytest.mark.parametrize("kind", FITTING)


def read(folder: Path, text: str, *overrides: str) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(text)
    return load_space(path, overrides)


def make(space: SearchSpace, kind: str, seed: int = 0) -> Sampler:
    return Sampler(space, replace(space.search, sampler=kind, seed=seed, epochs=4))


def curve(*accuracies: float, loss: float = 1.0) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=loss,
            val_loss=loss,
            val_accuracy=accuracy,
            lr=0.1,
            seconds=1.0,
            time=float(epoch),
        )
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


def accuracy_of(config: TrialConfig) -> float:
    """Return something that is best at a learning rate of 0.1."""
    return math.exp(-(math.log10(config.optimizer.lr / 0.1) ** 2))


def drive(sampler: Sampler, numbers: range) -> list[TrialConfig]:
    """Ask and tell, a third of the trials stopped."""
    configs = []
    for number in numbers:
        config = sampler.ask(number)
        assert config is not None
        value = accuracy_of(config)
        if number % 3:
            sampler.tell(number, "completed", curve(value / 2, value / 2, value / 2, value))
        else:
            sampler.tell(number, "stopped", curve(value / 2))
        configs.append(config)
    return configs


def without_seed(config: TrialConfig) -> str:
    return str(config.to_dict() | {"seed": None})


# Proposals


@every_sampler
def test_one_seed_gives_one_sequence(kind: str, tmp_path: Path) -> None:
    space = read(tmp_path, FITTING[kind])
    # After ten trials that are completed, each has left its random start behind.
    one, two, other = (drive(make(space, kind, seed), range(17)) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert len({config.seed for config in one}) == 17


@every_sampler
def test_no_configuration_is_proposed_twice(kind: str, tmp_path: Path) -> None:
    configs = drive(make(read(tmp_path, FITTING[kind]), kind), range(17))
    assert len({without_seed(config) for config in configs}) == 17


@every_sampler
def test_a_resumed_search_proposes_something_new(kind: str, tmp_path: Path) -> None:
    space = read(tmp_path, FITTING[kind])
    before = drive(make(space, kind), range(15))
    resumed = make(space, kind)
    for number, config in enumerate(before):
        assert resumed.add(config, "completed", curve(accuracy_of(config)), number)
    after = drive(resumed, range(15, 18))
    assert len({without_seed(config) for config in before + after}) == 18
    refused = [t for t in resumed.study.trials if "trial" not in t.user_attrs]
    assert len(refused) < 5, "it does not draw all over again what it drew before"


@pytest.mark.parametrize("kind", ["tpe", "random", "gp"])
def test_a_space_that_is_used_up_is_drawn_from_again(kind: str, tmp_path: Path) -> None:
    text = "space: {model: {cnn: {stages: 2}}, batch_size: {choice: [32, 64]}, schedule: cosine}"
    sampler = make(read(tmp_path, text), kind)
    configs = drive(sampler, range(5))
    assert {config.batch_size for config in configs[:2]} == {32, 64}
    assert len({config.seed for config in configs}) == 5


def test_what_does_not_go_together_is_not_proposed(tmp_path: Path) -> None:
    sampler = make(read(tmp_path, FINITE), "random")
    for number in range(NUM_FINITE):
        config = sampler.ask(number)
        assert config is not None
        assert config.optimizer.momentum > 0 or not config.optimizer.nesterov


def test_a_space_of_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    space = read(tmp_path, FINITE)
    sgd = Group(entries={"nesterov": Fixed(value=True), "momentum": Fixed(value=0.0)})
    optimizer = Branch(name="optimizer", options={"sgd": sgd})
    axes = Group(entries={**space.axes.entries, "optimizer": optimizer})
    with pytest.raises(UsageError, match="nesterov needs momentum above 0"):
        make(replace(space, axes=axes), "tpe").ask(0)


@pytest.mark.parametrize("kind", ["tpe", "cmaes"])
def test_a_model_of_the_space_beats_chance(kind: str, tmp_path: Path) -> None:
    space = read(tmp_path, FITTING[kind])

    def late_accuracy(kind: str) -> float:
        configs = drive(make(space, kind), range(60))
        return float(np.mean([accuracy_of(config) for config in configs[-10:]]))

    assert late_accuracy(kind) > late_accuracy("random")


def test_cmaes_goes_on_after_a_resume_from_what_it_had_learnt(tmp_path: Path) -> None:
    space = read(tmp_path, NUMBERS)
    first = make(space, "cmaes")
    configs = drive(first, range(60))
    resumed = make(space, "cmaes")
    for number, config in enumerate(configs):
        resumed.add(config, "completed", curve(accuracy_of(config)), number)
    after = [accuracy_of(config) for config in drive(resumed, range(60, 70))]
    anew = [accuracy_of(config) for config in drive(make(space, "cmaes", seed=5), range(10))]
    assert np.mean(after) > np.mean(anew)


# Samplers that do not fit


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("grid", BRANCHED, r"--sampler grid .*optimizer.sgd.lr is continuous.*--sampler random"),
        ("gp", BRANCHED, r"--sampler gp cannot search branches, and optimizer has.*--sampler tpe"),
        ("gp", FINITE, r"branches, and model has"),
        ("cmaes", MIXED, r"--sampler cmaes searches numbers alone, and model.cnn.norm is a choice"),
        ("cmaes", BRANCHED, r"and optimizer is a choice"),
        (
            "cmaes",
            "space: {model: {cnn: {stages: 2, width: {int: [8, 64]}}}}",
            r"needs two numbers to search, the space has 1",
        ),
    ],
)
def test_a_sampler_that_would_only_draw_at_random_is_refused(
    kind: str, text: str, message: str, tmp_path: Path
) -> None:
    space = read(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        make(space, kind)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=message):
        check_study_fits(space, replace(space.search, sampler=kind))


def test_without_its_package_cmaes_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(UsageError, match=r"not installed: pip install -e '\.\[cmaes\]'"):
        make(read(tmp_path, NUMBERS), "cmaes")


# The grid


def drain(sampler: Sampler, start: int = 0) -> list[TrialConfig]:
    configs = map(sampler.ask, itertools.count(start))
    return list(itertools.takewhile(lambda config: config is not None, configs))


def test_the_parameters_of_each_index_give_another_configuration(tmp_path: Path) -> None:
    space = read(tmp_path, FINITE, "space.optimizer.sgd.nesterov=false")
    size = space.cardinality()
    assert size == 2 * (2 * 4 + 2) * 2
    picked = [space.axes.pick(index) for index in range(size)]
    configs = [space.sample(RandomTrial(params=p), epochs=1, seed=0) for p in picked]
    assert len({str(config) for config in configs}) == size
    dropouts = {c.model.params["dropout"] for c in configs if c.model.family == "cnn"}
    assert dropouts == {0.0, 0.1, 0.2, 0.3}
    for params in picked:
        # Nothing is given that the space does not ask for, and nothing left to chance.
        again = [space.axes.sample(RandomTrial(seed, dict(params))) for seed in (0, 1)]
        assert again[0] == again[1]
        assert ("model.resnet.depth" in params) == (params["model"] == "resnet")


def test_a_grid_tries_each_configuration_once_and_ends(tmp_path: Path) -> None:
    sampler = make(read(tmp_path, FINITE), "grid")
    configs = drain(sampler)
    assert len({without_seed(config) for config in configs}) == len(configs) == NUM_FINITE
    assert sampler.ask(NUM_FINITE) is None, "and it stays at its end"
    assert {config.model.family for config in configs[:15]} == {"cnn", "resnet"}, "not in order"


def test_trials_of_a_grid_that_run_side_by_side_differ(tmp_path: Path) -> None:
    sampler = make(read(tmp_path, FINITE), "grid")
    running: list[int] = []
    configs = []
    for number in itertools.count():
        if (config := sampler.ask(number)) is None:
            break
        configs.append(without_seed(config))
        running.append(number)
        if len(running) == 8:
            sampler.tell(running.pop(number % 8), "completed", curve(0.5))
    assert len(set(configs)) == len(configs) == NUM_FINITE


@pytest.mark.parametrize("num_tried", [0, 1, 7, NUM_FINITE - 1, NUM_FINITE])
def test_a_resumed_grid_tries_only_what_is_left(num_tried: int, tmp_path: Path) -> None:
    space = read(tmp_path, FINITE)
    everything = drain(make(space, "grid"))
    random.Random(0).shuffle(everything)
    resumed = make(space, "grid", seed=num_tried % 2)
    for number, config in enumerate(everything[:num_tried]):
        if number % 3:
            resumed.add(config, "failed", [], number)
        else:
            resumed.restore(number, config)
    left = drain(resumed, num_tried)
    assert {*map(without_seed, left)} == {*map(without_seed, everything[num_tried:])}
    assert len(left) == NUM_FINITE - num_tried


def test_a_baseline_comes_before_the_grid_and_is_not_tried_again(tmp_path: Path) -> None:
    text = FINITE + "baseline: [{model: {resnet: {depth: 18}}, batch_size: 64}]\n"
    configs = drain(make(read(tmp_path, text), "grid"))
    assert (configs[0].model.params["depth"], configs[0].batch_size) == (18, 64)
    assert len({without_seed(config) for config in configs}) == len(configs) == NUM_FINITE


def test_a_huge_grid_is_never_laid_out(tmp_path: Path) -> None:
    names = "cutout: {int: [0, 30]}, crop: {int: [0, 30]}, mixup: {float: [0.0, 9.0], step: 0.001}"
    text = f"""
space:
  batch_size: {{int: [1, 100000]}}
  model: {{cnn: {{width: {{int: [8, 512]}}, dropout: {{float: [0.0, 0.9], step: 0.001}}}}}}
  augment: {{{names}, cutmix: {{float: [0.0, 9.0], step: 0.001}}}}
"""
    space = read(tmp_path, text)
    assert (space.cardinality() or 0) > 2**63
    sampler = make(space, "grid")
    assert len({without_seed(sampler.ask(number)) for number in range(20)}) == 20


@given(st.integers(0, 60), st.integers())
def test_shuffled_gives_each_number_once(size: int, seed: int) -> None:
    assert sorted(_shuffled(size, random.Random(seed))) == list(range(size))


def test_shuffled_gives_each_order_as_often() -> None:
    orders = [tuple(_shuffled(3, random.Random(seed))) for seed in range(6000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    np.testing.assert_allclose(counts, 1000, atol=4 * math.sqrt(1000))


# What Optuna is told


ENDINGS: dict[
    TrialState, tuple[list[EpochMetrics], OptunaState, float | None, dict[int, float]]
] = {
    "completed": (curve(0.2, 0.6, 0.5), OptunaState.COMPLETE, 0.6, {1: 0.2, 2: 0.6, 3: 0.5}),
    "stopped": (curve(0.2, 0.1), OptunaState.PRUNED, 0.1, {1: 0.2, 2: 0.1}),
    "diverged": (curve(0.3, loss=math.nan), OptunaState.PRUNED, None, {}),
    "out_of_memory": (curve(0.3), OptunaState.PRUNED, None, {}),
    "failed": (curve(0.3), OptunaState.FAIL, None, {}),
}


@pytest.mark.parametrize("is_replayed", [False, True])
def test_the_study_is_told_how_each_trial_ended(is_replayed: bool, tmp_path: Path) -> None:
    sampler = make(read(tmp_path, BRANCHED), "random")
    other = make(read(tmp_path, BRANCHED), "random", seed=1)
    for number, (state, (history, *_)) in enumerate(ENDINGS.items()):
        if is_replayed:
            config = other.ask(number)
            assert config is not None
            assert sampler.add(config, state, history, number)
        else:
            sampler.ask(number)
            sampler.tell(number, state, history)
    told = [(t.state, t.value, t.intermediate_values) for t in sampler.study.trials]
    assert told == [ending[1:] for ending in ENDINGS.values()]
    assert [t.user_attrs for t in sampler.study.trials] == [{"trial": n} for n in range(5)]


def test_a_paused_trial_is_shown_as_pruned_until_it_ends(tmp_path: Path) -> None:
    sampler = make(read(tmp_path, BRANCHED), "tpe")

    def shown() -> list[tuple[OptunaState, float | None, dict[int, float]]]:
        return [(t.state, t.value, t.intermediate_values) for t in sampler.study.trials]

    for number in range(3):
        sampler.ask(number)
    sampler.note_rung(1, curve(0.2, 0.4))
    running = (OptunaState.RUNNING, None, {})
    assert shown() == [running, (OptunaState.PRUNED, 0.4, {1: 0.2, 2: 0.4}), running]
    assert sampler.study.get_trials(states=(OptunaState.PRUNED,))[0].user_attrs["trial"] == 1
    sampler.note_rung(1, curve(0.2, 0.4, 0.3))
    assert shown()[1][1] == 0.3
    sampler.tell(1, "completed", curve(0.2, 0.4, 0.3, 0.5))
    assert shown()[1] == (OptunaState.COMPLETE, 0.5, {1: 0.2, 2: 0.4, 3: 0.3, 4: 0.5})
    sampler.note_rung(2, curve(0.1))
    sampler.tell(2, "stopped", curve(0.1))
    assert shown()[2] == (OptunaState.PRUNED, 0.1, {1: 0.1})
    assert sampler.study.trials[2].user_attrs == {"trial": 2}


def test_tpe_takes_a_stopped_trial_for_what_it_came_to(tmp_path: Path) -> None:
    space = read(tmp_path, FITTING["tpe"])
    stopped, complete = make(space, "tpe"), make(space, "tpe")
    for number in range(25):
        one, other = stopped.ask(number), complete.ask(number)
        assert one == other
        assert one is not None
        history = curve(accuracy_of(one))
        stopped.tell(number, "stopped" if number % 2 else "completed", history)
        complete.tell(number, "completed", history)
    assert {trial.state for trial in stopped.study.trials[1::2]} == {OptunaState.PRUNED}


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_tpe_is_shown_the_best_and_the_newest_of_very_many(metric: Metric, tmp_path: Path) -> None:
    space = read(tmp_path, FITTING["tpe"])
    search = replace(space.search, sampler="tpe", epochs=4, metric=metric)
    sampler = Sampler(space, search)
    numbers = random.Random(0)
    for number in range(MOST + 200):
        config = space.sample(RandomTrial(seed=number), epochs=4, seed=number)
        value = numbers.random()
        state: TrialState = "stopped" if number % 2 else "completed"
        sampler.add(config, state, curve(value, loss=value), number)
    everyone = sampler.study.trials
    with sampler._storage.drawing():
        shown = sampler.study.get_trials()
    assert len(everyone) == MOST + 200
    ranked = sorted(everyone, key=lambda trial: trial.value, reverse=metric == "accuracy")
    best = {trial.number for trial in ranked[:BEST]}
    newest = {trial.number for trial in everyone[BEST - MOST :]}
    assert {trial.number for trial in shown} == best | newest


def test_tpe_leaves_every_third_trial_to_chance(tmp_path: Path) -> None:
    space = read(tmp_path, FITTING["tpe"])
    sampler = make(space, "tpe")
    far = [abs(math.log10(config.optimizer.lr / 0.1)) for config in drive(sampler, range(120))]
    by_place = [np.mean(far[60 + place :: 3]) for place in range(3)]
    assert by_place[2] > 2 * max(by_place[:2])


@pytest.mark.parametrize("kind", ["tpe", "cmaes"])
def test_samplers_learn_from_paused_trials_as_from_stopped_ones(kind: str, tmp_path: Path) -> None:
    space = read(tmp_path, FITTING[kind])
    paused, stopped = make(space, kind), make(space, kind)
    for number in range(25):
        one, other = paused.ask(number), stopped.ask(number)
        assert one == other
        assert one is not None
        history = curve(accuracy_of(one))
        paused.note_rung(number, history)
        stopped.tell(number, "stopped", history)


@every_sampler
def test_a_replayed_study_equals_the_told_one(kind: str, tmp_path: Path) -> None:
    space = read(tmp_path, FITTING[kind])
    first, replayed = make(space, kind), make(space, kind)
    endings = [
        (number, first.ask(number), state, history)
        for number, (state, (history, *_)) in enumerate(ENDINGS.items())
    ]
    for number, config, state, history in endings:
        first.tell(number, state, history)
        assert config is not None
        assert replayed.add(config, state, history, number)

    def told(sampler: Sampler) -> list[tuple[object, ...]]:
        return [
            (t.state, t.value, t.params, t.distributions, t.intermediate_values, t.user_attrs)
            for t in sampler.study.trials
        ]

    assert told(first) == told(replayed)


def test_a_trial_that_is_taken_up_again_is_told_of_once(tmp_path: Path) -> None:
    space = read(tmp_path, BRANCHED)
    config = make(space, "tpe").ask(0)
    assert config is not None
    resumed = make(space, "tpe")
    assert resumed.restore(0, config)
    (running,) = resumed.study.trials
    assert running.state is OptunaState.RUNNING
    assert running.params["model.cnn.width"] == config.model.params["width"]
    resumed.tell(0, "completed", curve(0.4))
    resumed.tell(0, "completed", curve(0.4))
    (ended,) = resumed.study.trials
    assert (ended.state, ended.value) == (OptunaState.COMPLETE, 0.4)


def test_a_configuration_from_outside_the_space_is_left_out(tmp_path: Path) -> None:
    config = make(read(tmp_path, BRANCHED, "space.batch_size=512"), "tpe").ask(0)
    assert config is not None
    narrow = make(read(tmp_path, BRANCHED, "space.batch_size=64"), "tpe")
    assert not narrow.add(config, "completed", curve(0.4), 0)
    assert not narrow.restore(0, config)
    narrow.tell(0, "completed", curve(0.4))
    assert not narrow.study.trials


def test_a_wider_space_keeps_the_trials_of_the_narrow_one(tmp_path: Path) -> None:
    configs = drive(make(read(tmp_path, MIXED), "random"), range(4))
    wide = make(read(tmp_path, MIXED, "space.batch_size={choice: [128, 256]}"), "tpe")
    for number, config in enumerate(configs):
        assert wide.add(config, "completed", curve(0.4), number)
    assert {trial.params["batch_size"] for trial in wide.study.trials} == {128}


BASELINES = (
    BRANCHED
    + """
baseline:
  - {optimizer: {adamw: {lr: 0.001}}}
  - {optimizer: {sgd: {lr: 0.1}}, label_smoothing: 0.1}
"""
)


def test_baselines_come_first_and_are_not_tried_again_after_a_resume(tmp_path: Path) -> None:
    space = read(tmp_path, BASELINES)
    configs = drive(make(space, "tpe"), range(3))
    assert configs[0].optimizer.lr == 0.001
    assert (configs[1].optimizer.lr, configs[1].label_smoothing) == (0.1, 0.1)
    for num_tried in range(4):
        resumed = make(space, "tpe")
        for number, config in enumerate(configs[:num_tried]):
            resumed.add(config, "completed", curve(0.5), number)
        rates = [c.optimizer.lr for c in drive(resumed, range(num_tried, 5))]
        assert (rates[0] == 0.001) == (num_tried == 0)
        assert rates.count(0.1) == (num_tried < 2)


def test_a_trial_was_one_baseline_at_the_most_and_that_of_another_run_was_none(
    tmp_path: Path,
) -> None:
    entries = "[{optimizer: {sgd: {lr: 0.1}}}, {model: {cnn: {width: 16}}}]"
    space = read(tmp_path, f"{BRANCHED}baseline: {entries}\n")
    first = make(space, "tpe").ask(0)
    assert first is not None
    model = replace(first.model, params={**first.model.params, "width": 16})
    both = replace(first, model=model)

    def left(sampler: Sampler, number: int) -> list[bool]:
        found = [sampler.ask(one) for one in range(number, 2)]
        return [c.optimizer.lr == 0.1 or c.model.params["width"] == 16 for c in found if c]

    ended, killed, taught = (make(space, "tpe") for _ in range(3))
    assert ended.add(both, "completed", curve(0.5), 0)
    assert killed.restore(0, both)
    assert taught.add(both, "completed", curve(0.5))
    assert (left(ended, 1), left(killed, 1), left(taught, 0)) == ([True], [True], [True, True])


def test_baselines_of_a_space_with_its_own_epochs_are_not_tried_again_after_a_resume(
    tmp_path: Path,
) -> None:
    text = f"search: {{scheduler: none}}\n{BASELINES}".replace("space:\n", "space:\n  epochs: 3\n")
    space = read(tmp_path, text.replace("{sgd: {lr: 0.1}}", "{sgd: {}}"))
    config = make(space, "tpe").ask(0)
    assert config is not None
    assert (config.epochs, config.optimizer.lr) == (3, 0.001)
    resumed = make(space, "tpe")
    assert resumed.add(config, "completed", curve(0.5), 0)
    proposed = resumed.ask(1)
    assert proposed is not None
    assert proposed.label_smoothing == 0.1, "the other one"


def test_a_run_of_other_epochs_teaches_but_takes_no_configuration_away(tmp_path: Path) -> None:
    space = read(tmp_path, BASELINES)
    config = make(space, "tpe").ask(0)
    assert config is not None
    sampler = make(space, "tpe")
    assert sampler.add(replace(config, epochs=2), "completed", curve(0.5))
    assert sampler.study.trials[0].user_attrs == {}
    proposed = sampler.ask(0)
    assert proposed is not None
    assert proposed.optimizer.lr == 0.001
