"A loader says beforehand what its batches are."
import pytest
import torch

from finetune_teach.engine.batches import BatchSpec, SpecLoader


class Grey(SpecLoader):
    labels, batch_size = torch.arange(3), 2

    def __len__(self): return 2

    def specs(self):
        for index in self.labels.split(2): yield BatchSpec(index, index > 3, None)

    def load(self, spec): return torch.full((len(spec.index), 3, 2, 2), .5)

    def pictures_key(self): return 'grey'


def test_iteration_follows_the_specs_and_remembers_the_latest():
    loader = Grey()
    assert loader.latest is None and loader.files is None and not loader.always_new
    for (x, y), spec in zip(loader, loader.specs(), strict=True):
        assert torch.equal(x, loader.load(spec)) and torch.equal(y, loader.labels[spec.index])
        assert torch.equal(loader.latest.index, spec.index)
    assert BatchSpec._fields == ('index', 'flip', 'crop', 'seeds')


@pytest.mark.parametrize('name', ['__len__', 'specs', 'load', 'pictures_key'])
def test_a_loader_has_to_say_everything(name):
    part = type('Part', (Grey,), {name: getattr(SpecLoader, name)})
    with pytest.raises(TypeError, match=name): part()
