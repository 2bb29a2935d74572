"Batches made in worker processes: the same to the bit; what they keep; their errors."
import copy
import pickle
import sys

import pytest
import torch
from torchvision.transforms import v2

from finetune_teach.engine import store as store_module
from finetune_teach.engine.loaders import ImageLoaders, UnreadLoaders
from finetune_teach.engine.store import Preparation
from finetune_teach.engine.workers import in_workers
from finetune_teach.pictures import drawn_pets, image_folders
from picture_files import all_batches, assert_same_batches, make_folder, says, warned

pytestmark = [pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning'),
              pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere each worker starts anew, which takes seconds')]


@pytest.fixture
def photos(tmp_path): return make_folder(tmp_path / 'photos', dict(a=30, b=30), size=(40, 30))


@pytest.mark.parametrize('memory', [1, 0])
@pytest.mark.parametrize('options', [{}, dict(min_scale=.4), dict(picture=v2.TrivialAugmentWide()),
                                     dict(picture=v2.RandomCrop(16), input_size=24), dict(batch=v2.MixUp(num_classes=2))])
def test_batches_are_the_same_to_the_bit(photos, memory, options):
    crop = {k: v for k, v in options.items() if k == 'min_scale'}
    dls = image_folders(photos, size=16, batch_size=8, memory=memory, **crop)
    if not crop: dls = dls.with_transforms(**options)
    assert_same_batches(pickle.loads(pickle.dumps(dls)).with_workers(2), dls)


def test_pictures_that_have_no_files_too():
    pets = drawn_pets(4, 2, size=16)
    assert_same_batches(pets.with_workers(1), pets)


def test_what_workers_decode_is_kept_in_memory_or_nowhere(photos, monkeypatch):
    for memory, kept in ((1, 60), (0, 0)):
        dls = image_folders(photos, size=16, memory=memory).with_workers(2)
        all_batches(dls)
        sizes = dls.train.pictures.store.sizes
        assert sum(int(some.decoded.sum()) for some in sizes.values()) == kept and len(sizes) == (1 if memory else 0)
    dls = image_folders(photos, size=16).with_workers(2)
    all_batches(dls)
    monkeypatch.setattr(store_module, 'load_file', lambda *args: 1 / 0)
    all_batches(dls)


def test_workers_let_a_gpu_alone(photos, monkeypatch):
    "A process that was forked cannot use it; the generators of chance are looked at in each."
    def state_of_gpus():
        assert torch.utils.data.get_worker_info() is None, 'Cannot re-initialize CUDA in forked subprocess'
        return []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', state_of_gpus)
    dls = image_folders(photos, size=16).with_transforms(picture=v2.TrivialAugmentWide())
    assert len(list(dls.with_workers(1).train)) == len(dls.train)


def test_chance_outside_is_not_touched(photos):
    states = []
    for dls in (image_folders(photos, size=16), image_folders(photos, size=16).with_workers(2)):
        torch.manual_seed(1)
        list(dls.train)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_frozen_body_is_not_cached_and_they_say_so(photos, make_learner):
    dls = image_folders(photos, size=16)
    many = dls.with_workers(2)
    assert many.train.always_new and many.valid.num_workers == 2 and not dls.train.num_workers
    assert 'made in 2 worker processes, so a frozen body computes all pictures' in repr(many) and 'worker' not in repr(dls)
    assert 'made in 1 worker process, so' in repr(dls.with_workers(1)) and repr(many.with_workers(0)) == repr(dls)
    losses = []
    for some in (dls, many):
        learn = make_learner(some)
        learn.fit_one_cycle(1, 1e-3)
        losses.append([row['valid_loss'] for row in learn.recorder.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_unreadable_files_of_the_batch_are_named(photos):
    dls = image_folders(photos, size=16, batch_size=8).with_workers(2)
    bad = dls.train.files[5]
    bad.write_bytes(b'no')
    text = says(list, dls.train, match=['1 of 60 files', str(bad), 'not a picture', 'only this batch'])
    assert 'Traceback' not in text and 'DataLoader' not in text
    skipping, said = warned(image_folders, photos, size=16, on_error='skip')
    assert len(skipping.with_workers(1).train.labels) + len(skipping.valid.labels) == 59 and len(list(skipping.with_workers(1).train)) == 2
    later = image_folders(photos, on_error='skip').with_workers(1)
    assert type(later) is UnreadLoaders
    ready, said = warned(later.with_preprocessing, size=16)
    assert type(ready) is ImageLoaders and ready.train.num_workers == 1 and '1 of 60' in said[0]


def test_other_errors_come_with_their_place():
    def fail(n): return 1 / n
    with pytest.raises(ZeroDivisionError, match='in fail'): list(in_workers(fail, [1, 0], 1))


def test_odd_pictures_are_told_as_without(tmp_path):
    from PIL import Image
    for name in 'ab':
        (tmp_path / name).mkdir()
        for i in range(20): Image.new('RGB', (20, 20), (i % 4, 0, 0)).save(tmp_path / name / f'{i}.png')
    plain, many = image_folders(tmp_path, size=8), image_folders(tmp_path, size=8, memory=0).with_workers(1)
    one, two = (warned(all_batches, dls)[1] for dls in (plain, many))
    assert any('nearly black' in text for text in one) and any('nearly black' in text for text in two)
    assert not [text for text in warned(all_batches, many)[1] if 'fork' not in text], 'once'


def test_the_scale_of_wide_files_is_that_of_the_set(tmp_path):
    from test_store import wide_folder
    plain, many = (image_folders(wide_folder(tmp_path), size=16, memory=memory) for memory in (1, 0))
    assert_same_batches(plain, many.with_workers(2))
    assert many.value_range == plain.value_range


@pytest.mark.parametrize('n', [-1, 1.5, True, 'two', None])
def test_the_number_is_checked(photos, n):
    for dls in (image_folders(photos), image_folders(photos, on_error='skip')):
        says(dls.with_workers, n, match='num_workers=')
    assert copy.copy(image_folders(photos)).with_workers(0).train.num_workers == 0
