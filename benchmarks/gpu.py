"""Epochs of resnet50 on a GPU, 224 pixels, batches of 64: `learn.fit` and bare loops, in turn; frozen epochs; the finder.

    python benchmarks/gpu.py
"""
import argparse
import contextlib
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
import torchvision

from finetune_teach.all import freeze, vision_learner
from finetune_teach.engine.loaders import ImageLoader, ImageLoaders

N_CLASSES = 12


def loaders(args):
    "Pictures of noise, in memory; as many batches are trained on as `--batches` says, one validates."
    generator = torch.Generator().manual_seed(0)
    n = args.batches * args.batch_size
    pictures = torch.randint(0, 256, (n, 3, args.side, args.side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % N_CLASSES
    train = ImageLoader(pictures, labels, args.batch_size, shuffle=True, flip=True)
    valid = ImageLoader(pictures[:args.batch_size], labels[:args.batch_size], args.batch_size)
    return ImageLoaders(train, valid, [f'class {k}' for k in range(N_CLASSES)], size=args.side)


def learner(args, precision='fp32'):
    return vision_learner(loaders(args), args.arch, weights=None, seed=0, show=False, device=args.device,
                          precision=precision)


def bare_loop(args, precision, layout):
    "A function that trains for an epoch and validates, as one writes it without a library; the loss is read in each step."
    dls = learner(args).dls # on the device, normalised
    model = torchvision.models.get_model(args.arch, weights=None, num_classes=N_CLASSES)
    model = model.to(args.device, memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    kind = torch.device(args.device).type
    cast = torch.autocast(kind, torch.bfloat16) if precision == 'bf16' else contextlib.nullcontext()
    def epoch():
        model.train()
        for x, y in dls.train:
            with cast:
                loss = F.cross_entropy(model(x.contiguous(memory_format=layout)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        model.eval()
        with torch.no_grad(), cast:
            for x, _ in dls.valid:
                model(x.contiguous(memory_format=layout)).cpu()
    return epoch


def seconds(function, device):
    "How long a call takes, until the GPU is done."
    start = time.perf_counter()
    function()
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def epochs(args, precision):
    "Lines of the table: an epoch in which everything learns."
    learn = learner(args, precision)
    learn.unfreeze()
    sides = {'finetune_teach': lambda: learn.fit(1, 1e-4),
             'bare loop': bare_loop(args, precision, torch.contiguous_format),
             'bare loop, channels-last': bare_loop(args, precision, torch.channels_last)}
    times = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        for name, side in sides.items():
            took = seconds(side, args.device)
            if number: # the first is to warm up
                times[name].append(took)
    for name, some in times.items():
        ratio = statistics.median(a / b for a, b in zip(times['finetune_teach'], some))
        yield f'| {precision}, {name} | {statistics.median(some):.2f} ({min(some):.2f} to {max(some):.2f}) | {ratio:.2f} |'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(arch='resnet50', device='cuda', batches=32, batch_size=64, side=224, rounds=9).items():
        parser.add_argument('--' + name.replace('_', '-'), default=default, type=type(default))
    parser.add_argument('--precision', nargs='+', default=['fp32', 'bf16'])
    args = parser.parse_args(argv)
    warnings.filterwarnings('ignore', '.*will not repeat this training')
    name = torch.cuda.get_device_name() if args.device.startswith('cuda') else args.device
    print(f'{args.arch}, {args.side} pixels, {args.batches} batches of {args.batch_size}; {name}, torch {torch.__version__}\n')
    print('| epoch, everything learns | seconds | finetune_teach to it |\n|---|---|---|')
    for precision in args.precision:
        for line in epochs(args, precision):
            print(line, flush=True)
    learn = learner(args)
    freeze(learn.model) # nothing is pretrained here, so that it does not freeze by itself
    print('\n| frozen | seconds |\n|---|---|')
    for name in ('first epoch', 'second epoch'):
        print(f'| {name} | {seconds(lambda: learn.fit(1, 1e-3), args.device):.2f} |', flush=True)
    print(f'| finder | {seconds(learn.lr_find, args.device):.2f} |')


if __name__ == '__main__':
    main()
