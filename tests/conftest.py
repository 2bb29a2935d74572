"What several test files share: small pictures, a small network, a learner made of them."
import copy
import hashlib
import os
import random
import shutil
import signal
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from finetune_teach.engine.tiny_resnet import TinyResNet
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import vision_learner

matplotlib.use('Agg')
# programs in the background are often started with Ctrl-C switched off; those that are tested are not
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the batches are tiny: more threads cost more than they bring
os.environ.setdefault('OMP_NUM_THREADS', '1')  # in notebooks and programs that tests start, too
settings.register_profile('repeats', derandomize=True, deadline=None, database=None, max_examples=150,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile('repeats')  # the same inputs in each run


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def wait_until(true, seconds=10):
    "Wait until something is true; fail if it never is."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'it never came'
        time.sleep(.005)


CHROMIUM = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)


@pytest.fixture(scope='module')
def browser():
    "Chromium, in a window that nobody sees."
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield chromium
        chromium.close()


def open_explorer(browser, explorer, folder, **options):
    "A page of the browser with an explorer in it, when it has begun."
    file = folder / 'page.html'
    file.write_text('<meta charset="utf-8">' + explorer.page(), 'utf-8')
    page = browser.new_page(**options)
    page.goto(file.as_uri())
    page.wait_for_function('globalThis.finetuneTeach?.apps.size')
    return page


@pytest.fixture(scope='session')
def pets():
    "48 training and 36 validation pictures of 32 x 32 in 12 classes; batches of 16."
    return drawn_pets(n_train=4, n_valid=3, size=32)


def small_network(seed=1):
    "A whole classification network with batch norm and 6,000 parameters, always the same."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyResNet(5, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))


@pytest.fixture
def make_learner(pets):
    "A function that builds a quick learner; the small network counts as pretrained, so it is frozen."
    def make(dls=pets, arch=None, **options):
        options = {'seed': 0, 'hidden': (8,), 'device': 'cpu', 'show': False, **options}
        return vision_learner(dls, small_network() if arch is None else arch, **options)
    return make


Batches = namedtuple('Batches', 'train valid')  # any loaders will do, lists of (x, y) too


def toy_twin():
    "A network for vectors of four, always the same; three layer groups, the middle one is a norm layer."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))


@pytest.fixture
def toy():
    return toy_twin()


@pytest.fixture
def batches():
    "Three training batches of five vectors and one validation batch."
    generator = torch.Generator().manual_seed(0)
    def batch(n):
        x = torch.randn(n, 4, generator=generator)
        return x, x[:, :3].argmax(1)
    return Batches([batch(5), batch(5), batch(5)], [batch(7)])


def publish(network, weights, folder, monkeypatch):
    "Put a network into `folder` as the file with torchvision's `weights`; its name has the right digits."
    file = folder / 'new'
    torch.save(network.state_dict(), file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    url = f"{weights.url.rsplit('-', 1)[0]}-{digits}.pth"
    monkeypatch.setattr(weights.value, 'url', url)
    return file.rename(folder / url.rsplit('/', 1)[1])


def state(module):
    "A copy of all parameters and buffers."
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same_bits(one, two):
    "Whether two states hold the same tensors, bit for bit."
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def changed(before, after):
    "Names of the tensors that differ."
    return {name for name in before if not torch.equal(before[name], after[name])}


def everything(model, optimizer):
    "All that training depends on."
    memory = {f'{i}.{k}': v.clone() for i, s in optimizer.state_dict()['state'].items() for k, v in s.items()}
    rates = [{k: v for k, v in g.items() if k != 'params'} for g in optimizer.param_groups]
    return {'state': state(model), 'memory': memory, 'rates': copy.deepcopy(rates),
            'modes': [m.training for m in model.modules()],
            'learns': [p.requires_grad for p in model.parameters()],
            'gradients': [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            'python': random.getstate(), 'numpy': np.random.get_state()[1].tolist(),
            'torch': torch.get_rng_state().tolist()}


def assert_unchanged(before, after):
    for part in ('state', 'memory'):
        assert same_bits(before[part], after[part]), part
    for one, two in zip(before['gradients'], after['gradients'], strict=True):
        assert (one is None) == (two is None) and (one is None or torch.equal(one, two))
    for part in ('rates', 'modes', 'learns', 'python', 'numpy', 'torch'):
        assert before[part] == after[part], part


class WithoutPlans:
    "The same batches, but without the plans that let features be reused."
    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)


class Web(ThreadingHTTPServer):
    """A server on this computer: `files` are bytes by path, `asked` the paths it was asked for, `cut` is after how many
    bytes it breaks off."""
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.cut = {}, [], None
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header('Content-Length', str(len(content or b'')))
        self.end_headers()
        try:
            self.wfile.write((content or b'')[:self.server.cut])
        except (BrokenPipeError, ConnectionResetError):  # whoever asked wanted only the address
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with Web() as server:
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def weights_cache(tmp_path):
    "torchvision's cache of weights, empty."
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / 'hub')
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    yield tmp_path / 'hub' / 'checkpoints'
    torch.hub.set_dir(before)
