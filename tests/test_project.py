"The house is in order: module, README, site and wheel follow from the notebooks and settings."
import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml

import finetune_teach
import finetune_teach.all as everything

try:
    import tomllib
except ImportError: # Python 3.10, where pytest brings the same under this name
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / 'settings.ini')
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
PROJECT, TOOLS = PYPROJECT['project'], PYPROJECT['tool']


def test_module_is_what_the_notebooks_export(tmp_path):
    ignore = shutil.ignore_patterns('.git', '__pycache__', '*.egg-info', 'build', 'dist')
    copy = shutil.copytree(ROOT, tmp_path / 'copy', ignore=ignore, symlinks=True)
    modules = {p.name: p.read_text() for p in (copy / 'finetune_teach').glob('*.py')}
    for name in modules:
        if name != '__init__.py':
            (copy / 'finetune_teach' / name).unlink()
    command = [sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()']
    subprocess.run(command, cwd=copy, check=True)
    assert {p.name: p.read_text() for p in (copy / 'finetune_teach').glob('*.py')} == modules


def test_two_files_of_settings_agree():
    ours = SETTINGS['DEFAULT']
    assert PROJECT['name'] == ours['lib_name'] == ours['repo']
    assert PROJECT['description'] == ours['description']
    assert PROJECT['requires-python'] == '>=' + ours['min_python']
    assert finetune_teach.__version__ == ours['version']


def test_readme_is_the_home_page():
    cells = re.findall(r'(?s).+', (ROOT / 'README.md').read_text())
    texts = [c.source if c.cell_type == 'markdown' else c.outputs[0].data['text/markdown']
             for c in nbformat.read(ROOT / 'nbs/index.ipynb', 4).cells
             if c.cell_type == 'markdown' or c.source.startswith('#| echo: false')]
    expected = re.sub(r'\]\((?!http)', '](nbs/', '\n\n'.join(texts)) + '\n'
    assert cells == [expected], 'execute nbs/index.ipynb: its last cell writes the README'


def test_workflows_run_what_the_readme_says():
    command = re.search(r'^pip install -e .*$', (ROOT / 'README.md').read_text(), re.M)[0]
    test, site = (yaml.safe_load((ROOT / f'.github/workflows/{name}.yml').read_text())['jobs']
                  for name in ('test', 'site'))
    matrix = test['test']['strategy']['matrix']
    assert {name.split('-')[0] for name in matrix['os']} == {'ubuntu', 'macos', 'windows'}
    assert matrix['python'][0] == SETTINGS['DEFAULT']['min_python']
    assert matrix['python'] == [f'3.{n}' for n in range(10, 10 + len(matrix['python']))], 'none is left out'
    runs = [(step['run'].split(' #')[0], step.get('if', '')) for step in test['test']['steps'] if 'run' in step]
    at = runs.index((command, ''))
    (slow, where), = runs[at + 1:]
    assert slow == 'pytest -m slow' and set(re.findall(r"'([^']+)'", where)) <= {*matrix['os'], *matrix['python']}
    steps = [step for job in [*test.values(), *site.values()] for step in job['steps']]
    assert [step for step in steps if 'nbdev_docs' in step.get('run', '')]
    assert [step for step in steps if step.get('with', {}).get('path') == SETTINGS['DEFAULT']['doc_path']]
    for step in steps: # actions are named with their major version
        assert ('uses' in step) != ('run' in step) and re.search(r'@v\d+$', step.get('uses', '@v0')), step


def test_the_readmes_command_leaves_out_what_is_slow_and_ci_does_not():
    options = TOOLS['pytest']['ini_options']
    assert '-m "not slow"' in options['addopts'] and [m for m in options['markers'] if m.startswith('slow:')]
    assert '`pytest -m slow`' in (ROOT / 'README.md').read_text()
    assert (ROOT / '.ci/run').read_text().endswith('\nbash -c "$command"\npytest -m slow\n')


def test_all_code_is_python_of_the_oldest_version_and_compiles_without_a_warning():
    oldest = tuple(map(int, SETTINGS['DEFAULT']['min_python'].split('.')))
    code = {p.name: p.read_text() for folder in ('finetune_teach', 'tests', 'benchmarks') for p in (ROOT / folder).glob('*.py')}
    for path in (ROOT / 'nbs').glob('*.ipynb'):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
        code |= {f'{path.name}, cell {i}': re.sub(r'^(\s*)[%!].*', r'\1pass', source, flags=re.M)
                 for i, source in enumerate(cells)}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name, source in code.items():
            ast.parse(source, name, feature_version=oldest)
            compile(source, name, 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_installed_module_needs_only_what_it_declares():
    declared = {re.match(r'[\w-]+', line)[0] for line in PROJECT['dependencies']}
    comes_along = {'numpy': 'torchvision', 'PIL': 'torchvision', 'IPython': 'ipywidgets', 'filelock': 'torch'}
    for path in (ROOT / 'finetune_teach').glob('*.py'):
        for name in re.findall(r'^\s*(?:import|from) (\w+)', path.read_text(), re.M):
            if name not in sys.stdlib_module_names and name != 'finetune_teach':
                assert comes_along.get(name, name) in declared, f'{path.name} imports {name}'


def test_importing_all_loads_no_plotting_or_widget_library():
    code = 'import sys, finetune_teach.all; print({"matplotlib", "ipywidgets", "IPython"} & set(sys.modules))'
    output = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == 'set()'


def test_all_brings_the_lessons_names():
    names = '''drawn_pets image_folders image_files oxford_pets ImageLoaders create_body tiny_resnet create_head
               freeze unfreeze freeze_to one_cycle lr_find suggest_valley suggest_steep suggest_minimum pick_lr
               Learner vision_learner cnn_learner error_rate accuracy resnet18 resnet34 resnet50'''.split()
    assert set(names) <= set(everything.__all__)
    assert callable(everything.one_cycle), 'the function, not the module of that name'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('dist')
    copy = shutil.copytree(ROOT, out / 'source', symlinks=True, ignore=shutil.ignore_patterns(
        '.git', '__pycache__', '*.egg-info', 'build', 'dist'))
    for name in ('nbs/Untitled.ipynb', 'nbs/.ipynb_checkpoints/index-checkpoint.ipynb', 'finetune_teach/weights/old.bin'):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text('{}')  # left lying about; must not be shipped
    # --no-isolation: the build tool of the development environment, so that no network is needed
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy], check=True,
                          capture_output=True, text=True)
    assert 'absent from' not in done.stdout + done.stderr, 'setuptools doubts what is a package'
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


def test_wheel_holds_the_module_and_its_weights(wheel):
    names = zipfile.ZipFile(wheel[0]).namelist()
    modules = {f'finetune_teach/{p.name}' for p in (ROOT / 'finetune_teach').glob('*.py')}
    assert modules | {'finetune_teach/weights/tiny_resnet.safetensors'} <= set(names)
    assert not [n for n in names if n.startswith(('nbs/', 'tests/')) or n.endswith('old.bin')]


def test_wheel_and_source_distribution_hold_the_notebooks_once(wheel):
    names = zipfile.ZipFile(wheel[0]).namelist()
    images = [f'images/{p.name}' for p in (ROOT / 'nbs/images').iterdir()]
    lessons = re.findall(r'\(nbs/(\w+\.ipynb)\)', (ROOT / 'README.md').read_text())
    expected = sorted({'index.ipynb', *lessons, *images})
    folder = 'finetune_teach/notebooks/'
    assert sorted(n.removeprefix(folder) for n in names if n.startswith(folder)) == expected
    with tarfile.open(wheel[1]) as archive:
        assert sorted(n.split('/nbs/')[1] for n in archive.getnames()
                      if n.endswith(('.ipynb', '.png', '.svg'))) == expected


def test_wheel_works_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel[0]).extractall(tmp_path / 'site')
    code = ('import sys; sys.path.insert(0, "site"); import finetune_teach; from pathlib import Path; '
            'assert "site" in Path(finetune_teach.__file__).parts, finetune_teach.__file__; '
            'from finetune_teach.all import *; dls = drawn_pets(n_train=2, n_valid=2); '
            'learn = vision_learner(dls, seed=0); learn.fine_tune(1); print("fine")')
    result = subprocess.run([sys.executable, '-I', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.endswith('fine\n'), result.stderr


def test_wheel_writes_the_course(wheel, tmp_path):
    zipfile.ZipFile(wheel[0]).extractall(tmp_path / 'site')
    code = ('import sys; sys.path.insert(0, "site"); from finetune_teach.__main__ import main, notebooks_folder; '
            'assert notebooks_folder().as_posix().endswith("site/finetune_teach/notebooks"); '
            'sys.exit(main(["notebooks", "my course"]))')
    result = subprocess.run([sys.executable, '-I', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = {p.name for p in (tmp_path / 'my course').glob('*.ipynb')}
    assert written == {p.name for p in (ROOT / 'nbs').glob('*.ipynb')}
