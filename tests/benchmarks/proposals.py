"""CPU time of a proposal at given numbers of known trials, three quarters of them stopped.

    python -m tests.benchmarks.proposals --space cnn --trials 100 2000 10000

Their configurations and accuracies are drawn at random, because the proposals themselves do not
matter here.
"""

import argparse
import random
import statistics
import time
from dataclasses import replace

from tuner.run.trial import EpochMetrics, TrialState
from tuner.space import RandomTrial, SearchSpace, find_space, load_space
from tuner.tuning.sampling.sampler import CHANCE_EVERY, Sampler

PROPOSALS = 20


def seconds_of(space: SearchSpace, sampler: str, num_trials: int) -> list[float]:
    """Return the CPU seconds of some proposals of a sampler that knows ``num_trials`` trials."""
    proposer = Sampler(space, replace(space.search, sampler=sampler))
    numbers = random.Random(0)
    for number in range(num_trials):
        config = space.sample(RandomTrial(number), epochs=space.search.epochs, seed=number)
        epoch = EpochMetrics(
            epoch=1,
            train_loss=1.0,
            val_loss=1.0,
            val_accuracy=numbers.random(),
            lr=0.1,
            seconds=1.0,
            time=float(number),
        )
        state: TrialState = "stopped" if number % 4 else "completed"
        proposer.add(config, state, [epoch], number)
    found = []
    # The baselines come first and cost nothing.
    for number in range(num_trials, num_trials + len(space.baseline) + PROPOSALS):
        began = time.process_time()
        proposer.ask(number)
        # TPE leaves some proposals to chance, which is quick.
        if number - num_trials >= len(space.baseline) and number % CHANCE_EVERY < CHANCE_EVERY - 1:
            found.append(time.process_time() - began)
    return found


def main() -> None:
    """Run the benchmark; print one line per number of trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cnn")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 2000, 10_000])
    options = parser.parse_args()
    space = load_space(find_space(options.space))
    for count in options.trials:
        times = seconds_of(space, options.sampler, count)
        print(
            f"{count:,} trials: {statistics.median(times):.3f} s "
            f"({min(times):.3f} to {max(times):.3f})"
        )


if __name__ == "__main__":
    main()
