"The versions, for saved files and bug reports."
import torch

from finetune_teach.engine.versions import show_versions, versions


def test_versions(capsys):
    show_versions()
    shown = capsys.readouterr().out
    for name, value in versions().items():
        assert f'{name} ' in shown and value in shown
    assert torch.__version__.startswith(versions()['torch'])
