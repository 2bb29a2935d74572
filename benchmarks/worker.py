"""One side of the comparison; `compare.py` starts it as `worker.py SIDE THREADS`.

It reads a line of JSON for each thing to do, does and times it, and answers with a line of JSON: the
seconds (or MB) of each row of the table. Nothing outside the two clock readings is counted. The four
classes below are the four sides; a method of the same name does the same work on each of them."""
import gc
import importlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings

import torch
import torch.nn.functional as F
import torchvision

FIRST_BATCH = 'folder to the first batch'
FIRST_EPOCH = 'folder to the end of the first frozen epoch'
FROZEN = ['first frozen epoch', 'second frozen epoch']
FROZEN_BN = [f'{name}, fastai with train_bn=False' for name in FROZEN]
UNFROZEN, CROPS = 'unfrozen epoch', 'unfrozen epoch, random crops'
FINE_TUNE, FINE_TUNE_ALL = 'fine_tune(4)', 'folder to the end of fine_tune(4)'
MEMORY = 'peak memory of fine_tune(4)'
MEMORY_FIRST, MEMORY_FROZEN = 'peak memory, first batch', 'peak memory, first frozen epoch'
VALIDATION = 'validation'
MIN_SCALE = 0.75  # of a random crop's area
RATES = dict(start_lr=1e-7, end_lr=0.1)  # of lr_find: low enough that no side meets a loss of nan


class Clock:
    "Seconds since the last lap."
    def __init__(self):
        self.laps, self.last = [], time.perf_counter()

    def lap(self):
        now = time.perf_counter()
        self.laps.append(now - self.last)
        self.last = now


def peak_memory():
    "The most memory that this process has had so far, in MB."
    try:
        with open('/proc/self/status') as status:
            return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024
    except FileNotFoundError:  # macOS; there it is in bytes
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def network(arch, n_classes):
    "The network of fastai and the bare loop: torchvision's, random weights, finetune_teach's head."
    from finetune_teach.pretrained_body import create_body
    from finetune_teach.random_head import create_head
    body = create_body(arch, None)
    body.to(memory_format=torch.contiguous_format)  # as torchvision builds it
    return torch.nn.Sequential(body, create_head(body.num_features, n_classes))


class Side:
    "What the sides share: options, and what is measured in a process of its own."
    def __init__(self, folder, arch, size, batch_size, workers):
        self.folder, self.arch, self.size = folder, arch, size
        self.batch_size, self.workers = batch_size, workers
        self.dls = self.unfrozen = self.cropped = None

    def prepare(self):
        "Open the folder, build learners: before the clock runs."
        self.dls = self.open()
        self.unfrozen = self.learner(frozen=False)
        return {}

    def growth(self):
        "From the folder on, with memory; in a new process."
        clock = Clock()
        self.dls = self.open()
        self.first(self.dls)
        clock.lap()
        rows = {FIRST_BATCH: clock.laps[0], MEMORY_FIRST: peak_memory()}
        learn, clock = self.learner(frozen=True), Clock()
        self.fit(learn, 1)
        clock.lap()
        return rows | {FROZEN[0]: clock.laps[0], MEMORY_FROZEN: peak_memory()}

    def first_batch(self):
        "From the folder's path to the first training batch."
        clock = Clock()
        self.first(self.open())
        clock.lap()
        return {FIRST_BATCH: clock.laps[0]}

    def first_epoch(self):
        "From the folder's path to the end of the first epoch with a frozen body."
        clock = Clock()
        self.dls = self.open()
        self.fit(self.learner(frozen=True), 1)
        clock.lap()
        return {FIRST_EPOCH: clock.laps[0]}

    def unfrozen_epoch(self):
        "An epoch in which everything learns, and its validation."
        clock = Clock()
        self.fit(self.unfrozen, 1)
        clock.lap()
        return {UNFROZEN: clock.laps[0]}

    def crops(self):
        "An epoch in which everything learns, from another part of each picture each time; with validation."
        if self.cropped is None:  # before the clock runs
            whole, self.dls = self.dls, self.open(MIN_SCALE)
            self.cropped, self.dls = self.learner(frozen=False), whole
        clock = Clock()
        self.fit(self.cropped, 1)
        clock.lap()
        return {CROPS: clock.laps[0]}

    def fine_tune(self):
        "One frozen and four unfrozen epochs; in a new process, so that its memory can be told."
        start = time.perf_counter()
        self.dls = self.open()
        learn, clock = self.learner(frozen=True), Clock()
        learn.fine_tune(4)
        clock.lap()
        return {FINE_TUNE: clock.laps[0], FINE_TUNE_ALL: time.perf_counter() - start,
                MEMORY: peak_memory()}

    def validation(self):
        "Loss and error rate of the validation pictures, whole network."
        clock = Clock()
        self.unfrozen.validate()
        clock.lap()
        return {VALIDATION: clock.laps[0]}


class FinetuneTeach(Side):
    "finetune_teach as a user calls it."
    def open(self, min_scale=1.):
        from finetune_teach.all import image_folders
        return image_folders(self.folder, size=self.size, batch_size=self.batch_size, min_scale=min_scale)

    def first(self, dls):
        return next(iter(dls.train))

    def learner(self, frozen):
        from finetune_teach.all import vision_learner
        learn = vision_learner(self.dls, self.arch, weights=None, device='cpu', show=False)
        learn.freeze_to(-1 if frozen else 0)
        return learn

    def fit(self, learn, epochs):
        learn.fit_one_cycle(epochs)

    def frozen_epochs(self, train_bn=True):
        "Each epoch of `fit_one_cycle(2)` with a new learner; `train_bn` only names the rows."
        learn, clock = self.learner(frozen=True), Clock()
        learn.fit_one_cycle(2, callbacks=[lambda model, recorder: clock.lap()])
        return dict(zip(FROZEN if train_bn else FROZEN_BN, clock.laps))

    def lr_find(self, frozen, steps):
        "The learning-rate finder; it is not stopped early."
        learn, clock = self.learner(frozen), Clock()
        found = learn.lr_find(num_it=steps, stop_div=False, show=False, **RATES)
        clock.lap()
        return lr_find_row(frozen, steps, clock, len(found.lrs))


class Fastai(Side):
    "fastai as a user calls it; its `Learner` gets the same network and the same layer groups."
    def open(self, min_scale=1.):
        from fastai.vision.all import (
            Flip, ImageDataLoaders, Normalize, RandomResizedCrop, Resize, imagenet_stats)
        to_size = Resize(self.size) if min_scale == 1 else RandomResizedCrop(self.size, min_scale)
        return ImageDataLoaders.from_folder(
            self.folder, bs=self.batch_size, num_workers=self.workers, device=torch.device('cpu'),
            item_tfms=to_size, batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)])

    def first(self, dls):
        return dls.one_batch()

    def learner(self, frozen, train_bn=True):
        from fastai.vision.all import Learner, ProgressCallback, error_rate, noop
        from finetune_teach.freezing import layer_groups
        learn = Learner(self.dls, network(self.arch, self.dls.c), metrics=error_rate, train_bn=train_bn,
                        splitter=lambda model: [g.parameters() for g in layer_groups(model)],
                        path=tempfile.gettempdir())  # where lr_find keeps the weights meanwhile
        learn.remove_cb(ProgressCallback)
        learn.logger = noop  # neither bar nor table, as on the other sides
        learn.freeze_to(-1 if frozen else 0)
        return learn

    def fit(self, learn, epochs, **options):
        learn.fit_one_cycle(epochs, **options)

    def frozen_epochs(self, train_bn=True):
        "Each epoch of `fit_one_cycle(2)` with a new learner; `train_bn=True` is fastai's default."
        from fastai.vision.all import Callback
        learn, clock = self.learner(True, train_bn), Clock()
        self.fit(learn, 2, cbs=Callback(after_epoch=lambda callback: clock.lap()))
        return dict(zip(FROZEN if train_bn else FROZEN_BN, clock.laps))

    def lr_find(self, frozen, steps):
        "The learning-rate finder; it is not stopped early."
        learn, clock = self.learner(frozen), Clock()
        learn.lr_find(num_it=steps, stop_div=False, show_plot=False, **RATES)
        clock.lap()
        return lr_find_row(frozen, steps, clock, len(learn.recorder.lrs))

    def quicker_workers(self):
        "fastai's `num_workers`: 0 or its default, whichever makes an unfrozen epoch quicker here."
        from fastai.vision.all import defaults
        return quicker_workers(self, defaults.cpus)


class TimmLearner:
    "timm's optimiser, meters and metric, in a loop of the shape of its `train.py`."
    def __init__(self, loaders, model):
        from timm.optim import create_optimizer_v2
        (self.train, self.valid), self.model = loaders, model
        self.optimizer = create_optimizer_v2(model, 'adamw', lr=1e-3, weight_decay=0.01)

    def fit(self, epochs):
        from timm.utils import AverageMeter
        for _ in range(epochs):
            self.model.train()
            losses = AverageMeter()
            for x, y in self.train:
                loss = F.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                losses.update(loss.item(), len(x))
            self.validate()

    @torch.no_grad()
    def validate(self):
        from timm.utils import AverageMeter, accuracy
        self.model.eval()
        losses, top1 = AverageMeter(), AverageMeter()
        for x, y in self.valid:
            logits = self.model(x)
            losses.update(F.cross_entropy(logits, y).item(), len(x))
            top1.update(accuracy(logits, y)[0].item(), len(x))
        return losses.avg, top1.avg


class Timm(Side):
    "timm's loaders as its `train.py` makes them, mirrors or crops as the only augmentation."
    def open(self, min_scale=1.):
        from timm.data import create_dataset, create_loader
        common = dict(input_size=(3, self.size, self.size), batch_size=self.batch_size,
                      num_workers=self.workers, device=torch.device('cpu'), persistent_workers=False)
        sets = [create_dataset('', self.folder, split) for split in ('train', 'valid')]
        self.n_classes = len(sets[0].reader.class_to_idx)
        return (create_loader(sets[0], is_training=True, scale=(min_scale, 1.), ratio=(1., 1.),
                              color_jitter=None, interpolation='bilinear', **common),
                create_loader(sets[1], crop_pct=1., interpolation='bilinear', **common))

    def first(self, loaders):
        return next(iter(loaders[0]))

    def learner(self, frozen):
        return TimmLearner(self.dls, network(self.arch, self.n_classes))

    def fit(self, learn, epochs):
        learn.fit(epochs)

    def first_epoch(self):
        "Nothing, since its script has no frozen epochs."
        return {}

    def growth(self):
        "The first batch, with memory."
        return self.first_batch() | {MEMORY_FIRST: peak_memory()}

    def quicker_workers(self):
        "timm's `num_workers`: 0 or a process for each core, whichever is quicker here."
        return quicker_workers(self, os.cpu_count())


class BareLearner:
    "A bare loop: nothing but what PyTorch needs, over batches that lie in memory, in fp32."
    def __init__(self, batches, model, frozen):
        (self.train, self.valid), (self.body, self.head), self.model = batches, model, model
        self.freeze(frozen)

    def freeze(self, frozen):
        self.frozen = frozen
        self.body.requires_grad_(not frozen)
        learning = self.head if frozen else self.model
        self.optimizer = torch.optim.AdamW(learning.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5,
                                           fused=True)  # the settings of the other sides

    def forward(self, x):
        if not self.frozen:
            return self.model(x)
        with torch.no_grad():
            features = self.body(x)
        return self.head(features)

    def train_on(self, batches):
        self.model.train()
        if self.frozen:
            self.body.eval()
        total = 0
        for x, y in batches:
            loss = F.cross_entropy(self.forward(x), y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += loss.item()
        return total

    @torch.no_grad()
    def validate(self):
        self.model.eval()
        total = wrong = 0
        for x, y in self.valid:
            logits = self.model(x)
            total += F.cross_entropy(logits, y, reduction='sum').item()
            wrong += (logits.argmax(1) != y).sum().item()
        return total, wrong

    def fit(self, epochs):
        for _ in range(epochs):
            self.train_on(self.train)
            self.validate()

    def fine_tune(self, epochs):
        self.freeze(True)
        self.fit(1)
        self.freeze(False)
        self.fit(epochs)


class BareLoop(Side):
    "The bare loop. Its batches are made once, by finetune_teach: the same pictures in every epoch."
    def open(self, min_scale=1.):
        from finetune_teach.pictures import image_folders
        dls = image_folders(self.folder, size=self.size, batch_size=self.batch_size)
        self.n_classes = len(dls.classes)
        return list(dls.train), list(dls.valid)

    def first(self, batches):
        return batches[0][0]

    def learner(self, frozen):
        return BareLearner(self.dls, network(self.arch, self.n_classes), frozen)

    def fit(self, learn, epochs):
        learn.fit(epochs)

    def frozen_epochs(self):
        "Two epochs; the body's outputs are computed anew in each, but without autograd."
        learn, clock = self.learner(frozen=True), Clock()
        for _ in FROZEN:
            learn.fit(1)
            clock.lap()
        return dict(zip(FROZEN, clock.laps))


def quicker_workers(side, processes):
    "Seconds of an unfrozen epoch with so many processes that read pictures, and with none."
    seconds = {0: [], processes: []}
    for _ in range(2):  # the first round warms up
        for side.workers in seconds:
            side.prepare()
            seconds[side.workers].append(side.unfrozen_epoch()[UNFROZEN])
    return {str(n): times[-1] for n, times in seconds.items()}


def lr_find_row(frozen, steps, clock, done):
    if done != steps:
        raise RuntimeError(f'lr_find ended after {done} of {steps} steps')
    return {f'lr_find {"frozen" if frozen else "unfrozen"}, {steps} steps': clock.laps[0]}


SIDES = {'finetune_teach': FinetuneTeach, 'fastai': Fastai, 'timm': Timm, 'bare loop': BareLoop}
LIBRARIES = {'finetune_teach': 'finetune_teach.all', 'fastai': 'fastai.vision.all', 'timm': 'timm',
             'bare loop': 'torch'}


def versions(side):
    "Import the side's library, so that no clock runs meanwhile; all versions."
    importlib.import_module(LIBRARIES[side])
    names = ['torch', 'torchvision', LIBRARIES[side].split('.')[0]]
    return {'python': platform.python_version(), **{name: sys.modules[name].__version__ for name in names}}


def main():
    name, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), 'w')  # what anything prints goes to standard error instead
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    warnings.simplefilter('ignore')
    side = None
    for line in sys.stdin:
        request = json.loads(line)
        do, options = request['do'], request['options']
        gc.collect()
        try:
            torch.manual_seed(0)
            if do == 'start':
                side, answer = SIDES[name](**options), versions(name)
            else:
                answer = getattr(side, do)(**options)
        except Exception:
            answer = {'error': traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
