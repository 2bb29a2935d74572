"""Milliseconds of a forward pass and of a training step: usual order in memory, channels-last, and bf16.

    python benchmarks/steps.py [NETWORK ...]
"""
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from compare import BATCH_SIZE, NETWORKS
from finetune_teach.engine.precision import with_precision
from finetune_teach.pretrained_body import create_body

WAYS = {'usual order': (torch.contiguous_format, 'fp32'), 'channels-last': (torch.channels_last, 'fp32'),
        'channels-last, bf16': (torch.channels_last, 'bf16')}


def milliseconds(step):
    "Processor time of `step`: the median of seven, after one to warm up."
    times = []
    for _ in range(8):
        start = time.process_time()
        step()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times[1:])


def measure(arch, layout, precision):
    "Forward pass without gradient, and forward and backward pass with everything learning."
    body = with_precision(create_body(arch, None).to(memory_format=layout), precision)
    x, y = torch.randn(BATCH_SIZE, 3, *[NETWORKS[arch][0]] * 2), torch.arange(BATCH_SIZE) % 10
    def train():
        body.zero_grad()
        F.cross_entropy(body(x), y).backward()
    with torch.no_grad():
        forward = milliseconds(lambda: body.eval()(x))
    body.train()
    return forward, milliseconds(train)


def main():
    torch.set_num_threads(1)
    print('| ms | ' + ' | '.join(WAYS) + ' |\n' + '|---' * (len(WAYS) + 1) + '|')
    for arch in sys.argv[1:] or NETWORKS:
        cells = ['{:.0f}, {:.0f}'.format(*measure(arch, *way)) for way in WAYS.values()]
        print(f'| {arch}, {NETWORKS[arch][0]} pixels | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
