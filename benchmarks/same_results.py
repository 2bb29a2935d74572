"""Do the fast ways learn as well as the plain one? Errors of three seeds, each way.

    python benchmarks/same_results.py [FOLDER ...]   # image folders; without one, drawn pets
"""
import argparse
import statistics
from pathlib import Path

import torch

from finetune_teach.engine.features import Loaders
from finetune_teach.pictures import drawn_pets, image_folders
from finetune_teach.tools.learners import vision_learner


class Plain:
    "A loader's batches and nothing else: so no feature can be kept, each epoch computes all anew."
    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)


def plain(learn):
    "fp32, weights in PyTorch's usual order, nothing kept."
    learn.model.to(memory_format=torch.contiguous_format)
    learn.dls = Loaders(Plain(learn.dls.train), Plain(learn.dls.valid))


def as_it_comes(learn):
    "Nothing is changed."


def sixteen_bits(learn):
    "The body computes in bfloat16."
    learn.precision = 'bf16'


WAYS = {'plain': plain, 'as it comes': as_it_comes, 'bf16': sixteen_bits}
RUNS = {'fine_tune(4)': lambda learn: learn.fine_tune(4),
        'head only, 5 epochs': lambda learn: learn.fit_one_cycle(5, 3e-3)}


def error(dls, change, run, seed):
    "Error rate at the end."
    learn = vision_learner(dls, seed=seed, show=False)
    change(learn)
    run(learn)
    return learn.validate().error_rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='*', type=Path)
    tasks = {folder.name: image_folders(folder) for folder in parser.parse_args().folders}
    print('| pictures | training | way | seed 0 | seed 1 | seed 2 | mean |\n|---|---|---|---|---|---|---|')
    for task, dls in (tasks or {'drawn pets': drawn_pets()}).items():
        for training, run in RUNS.items():
            for way, change in WAYS.items():
                errors = [error(dls, change, run, seed) for seed in range(3)]
                cells = [f'{e:.3f}' for e in [*errors, statistics.mean(errors)]]
                print('|', ' | '.join([task, training, way, *cells]), '|', flush=True)


if __name__ == '__main__':
    main()
