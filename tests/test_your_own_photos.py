"The notebook on your own photos also runs on a folder that is not its own."
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from finetune_teach.engine.drawing import draw_pet

NOTEBOOK = Path(__file__).parent.parent / 'nbs' / '11_your_own_photos.ipynb'


@pytest.mark.slow
def test_first_half_on_another_folder(tmp_path):
    for breed in ('husky', 'Bengal'):
        (tmp_path / 'mine' / breed).mkdir(parents=True)
        for i in range(10):
            draw_pet(breed, i, size=90).save(tmp_path / 'mine' / breed / f'IMG_{i:04}.png')
    (tmp_path / 'mine' / 'husky' / 'notes.txt').write_text('no picture')
    notebook = nbformat.read(NOTEBOOK, 4)
    second_half = next(i for i, cell in enumerate(notebook.cells)
                       if cell.source.startswith('## How many pictures') or
                       '\n## How many pictures' in cell.source)
    del notebook.cells[second_half:]
    setting = next(cell for cell in notebook.cells if cell.source.startswith('folder = None'))
    setting.source = f'folder = {str(tmp_path / "mine")!r}'
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    printed = ''.join(output.text for output in outputs if output.output_type == 'stream')
    assert re.search(r'husky +11\n', printed) and 'notes.txt - not a picture' in printed
    assert len(list((tmp_path / 'mine').rglob('*.png'))) == 20, 'nothing of yours is moved'
