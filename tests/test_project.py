"The house is in order: module, README, site and wheel follow from the notebooks and settings."
import ast
import configparser
import graphlib
import re
import shutil
import subprocess
import sys
import tarfile
import types
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


PACKAGE = ROOT / 'finetune_teach'
MODULES = {'.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path for path in sorted(PACKAGE.rglob('*.py'))}
WRITTEN_BY_HAND = {'__init__', '__main__', '_modidx', 'engine.__init__', 'tools.__init__'} # or by nbdev
LESSONS = {path.stem[3:]: number for number, path in enumerate(sorted((ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb')))}
NOTEBOOKS = sorted(path for path in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
SOURCES = {name: path.read_text('utf-8') for name, path in MODULES.items() if name not in WRITTEN_BY_HAND}


# The modules follow from the notebooks

def test_module_is_what_the_notebooks_export(tmp_path):
    ignore = shutil.ignore_patterns('.git', '__pycache__', '*.egg-info', 'build', 'dist')
    copy = shutil.copytree(ROOT, tmp_path / 'copy', ignore=ignore, symlinks=True)
    def modules():
        return {p.relative_to(copy).as_posix(): p.read_text('utf-8') for p in (copy / 'finetune_teach').rglob('*.py')}
    before = modules()
    for name in before:
        if not name.endswith(('__init__.py', '__main__.py')):
            (copy / name).unlink()
    command = [sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()']
    subprocess.run(command, cwd=copy, check=True)
    assert modules() == before


def exports(path):
    "The module that a notebook writes, and the directives of its cells."
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == 'code']
    directives = [line.split()[1:] for source in cells for line in source.splitlines() if line.startswith('#|')]
    written = [d[1] for d in directives if d[0] == 'default_exp']
    return (written[0] if written and ['export'] in directives else None), {d[0] for d in directives}


def test_there_is_no_other_module():
    assert set(SOURCES) == {exports(path)[0] for path in NOTEBOOKS} - {None}


def test_there_is_one_way_to_keep_a_name_private():
    "A leading underscore; and what has one is used nowhere else."
    assert not [path for path in NOTEBOOKS if {'exporti', 'exports', 'exporti:', 'exports:'} & exports(path)[1]]
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith('finetune_teach')):
                assert not [a.name for a in node.names if re.match('_(?!_)', a.name)], f'{name} imports it'


# Three storeys; imports only point down

def imported(name):
    "The package's modules that a module imports, also inside of functions."
    package = ['finetune_teach', *name.split('.')[:-1]]
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = '.'.join([*base, *([node.module] if node.module else [])])
            found = [base, *(f'{base}.{alias.name}' for alias in node.names)]
        else:
            continue
        yield from {f.removeprefix('finetune_teach.') for f in found if f.startswith('finetune_teach.')} & SOURCES.keys()


def storey(name):
    "A place from below: the engine, the lessons by their numbers, the tools, and `all` on the roof."
    if '.' in name:
        return {'engine': -1, 'tools': 100}[name.split('.')[0]]
    return {'all': 101, **LESSONS}[name]


def test_imports_only_point_down():
    wrong = [f'{name} imports {other}' for name in SOURCES for other in imported(name)
             if not (storey(other) < storey(name) or (storey(other) == storey(name)) and '.' in name)]
    assert not wrong


def test_imports_have_no_cycle():
    order = {name: set(imported(name)) for name in SOURCES}
    assert [*graphlib.TopologicalSorter(order).static_order()]


def test_a_lesson_exports_its_idea_and_no_more():
    lengths = {name: len(SOURCES[name].splitlines()) for name in LESSONS if name in SOURCES}
    assert not {name: n for name, n in lengths.items() if not 60 <= n <= 240}


def test_no_function_is_longer_than_a_screen():
    long = {}
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 40:
                long[f'{name}.{node.name}'] = node.end_lineno - node.lineno + 1
    assert not long


def test_all_lists_names_by_hand():
    assert len(everything.__all__) == len(set(everything.__all__)) <= 75
    assert not [name for name in everything.__all__ if not hasattr(everything, name)]
    assert not [name for name in everything.__all__ if isinstance(getattr(everything, name), types.ModuleType)]


# Settings, README and workflows

def test_two_files_of_settings_agree():
    ours = SETTINGS['DEFAULT']
    assert PROJECT['name'] == ours['lib_name'] == ours['repo']
    assert PROJECT['description'] == ours['description']
    assert PROJECT['requires-python'] == '>=' + ours['min_python']
    assert finetune_teach.__version__ == ours['version'] == '0.2.0'


def test_readme_is_the_home_page():
    "Its text, the code that it shows, and the picture that this code draws."
    cells, texts = re.findall(r'(?s).+', (ROOT / 'README.md').read_text()), []
    for cell in nbformat.read(ROOT / 'nbs/index.ipynb', 4).cells:
        if cell.cell_type == 'markdown':
            texts.append(cell.source)
        elif cell.source.startswith('#| echo: false\nMarkdown('):
            texts.append(cell.outputs[0].data['text/markdown'])
        elif cell.source.endswith('\nfilters'):
            texts.append(f'![{"".join(cell.outputs[0].data["text/plain"])}](images/filters.png)')
        elif not re.match(r'#\| (hide|default_exp|export|echo)', cell.source):
            texts.append('```python\n' + re.sub(r'(?m)^#\|.*\n', '', cell.source) + '\n```')
            texts += [f'![{alt}](images/answers.png)' for alt in re.findall(r'#\| fig-alt: "(.*)"', cell.source)]
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
    (slow, where), (again, there) = runs[at + 1:]
    assert slow == 'pytest -m slow' and set(re.findall(r"'([^']+)'", where)) <= {*matrix['os'], *matrix['python']}
    assert again in (ROOT / '.ci/run').read_text() and there == where
    steps = [step for job in [*test.values(), *site.values()] for step in job['steps']]
    assert [step for step in steps if 'nbdev_docs' in step.get('run', '')]
    assert [step for step in steps if step.get('with', {}).get('path') == SETTINGS['DEFAULT']['doc_path']]
    for step in steps: # actions are named with their major version
        assert ('uses' in step) != ('run' in step) and re.search(r'@v\d+$', step.get('uses', '@v0')), step


def test_the_readmes_command_leaves_out_what_is_slow_and_ci_does_not():
    options = TOOLS['pytest']['ini_options']
    assert '-m "not slow"' in options['addopts'] and [m for m in options['markers'] if m.startswith('slow:')]
    assert '`pytest -m slow`' in (ROOT / 'README.md').read_text()
    *_, readmes, slow, where, last, end = (ROOT / '.ci/run').read_text().splitlines()
    assert (readmes, slow) == ('bash -c "$command"', 'pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder')
    assert (where, end) == ('if grep -qs avx512f /proc/cpuinfo; then', 'fi')
    variable, command, *files = last.split()
    assert (variable, command) == ('ONEDNN_MAX_CPU_ISA=AVX2', 'pytest')
    assert files and all((ROOT / file).exists() for file in files)


def test_all_code_is_python_of_the_oldest_version_and_compiles_without_a_warning():
    oldest = tuple(map(int, SETTINGS['DEFAULT']['min_python'].split('.')))
    code = {p.relative_to(ROOT).as_posix(): p.read_text('utf-8')
            for folder in ('finetune_teach', 'tests', 'benchmarks') for p in (ROOT / folder).rglob('*.py')}
    for path in NOTEBOOKS:
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
    comes_along = {'numpy': 'torchvision', 'PIL': 'torchvision', 'IPython': 'ipywidgets', 'filelock': 'torch',
                   'traitlets': 'ipywidgets', 'sklearn': 'scikit-learn'}
    extras = {re.match(r'[\w-]+', line)[0] for lines in PROJECT['optional-dependencies'].values() for line in lines}
    for module, source in SOURCES.items():
        for inside, name in re.findall(r'^([ \t]*)(?:import|from) (\w+)', source, re.M):
            if name not in sys.stdlib_module_names and name != 'finetune_teach':
                allowed = declared | (extras if inside else set()) # a function may need an extra
                assert comes_along.get(name, name) in allowed, f'{module} imports {name}'


def test_importing_all_loads_no_plotting_or_widget_library():
    code = 'import sys, finetune_teach.all; print({"matplotlib", "ipywidgets", "anywidget", "IPython"} & set(sys.modules))'
    output = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == 'set()'


def test_all_brings_the_lessons_names():
    names = '''drawn_pets image_folders image_files oxford_pets create_body tiny_resnet create_head
               freeze unfreeze freeze_to one_cycle fit fine_tune lr_find suggest_valley suggest_steep suggest_minimum
               pick_lr Learner vision_learner cnn_learner load_learner error_rate accuracy
               resnet18 resnet34 resnet50'''.split()
    assert set(names) <= set(everything.__all__)
    assert callable(everything.one_cycle), 'the function, not the module of that name'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('dist')
    copy = shutil.copytree(ROOT, out / 'source', symlinks=True, ignore=shutil.ignore_patterns(
        '.git', '__pycache__', '*.egg-info', 'build', 'dist'))
    for name in ('nbs/Untitled.ipynb', 'nbs/engine/Untitled1.ipynb', 'nbs/tools/claims-Copy1.ipynb',
                 'nbs/.ipynb_checkpoints/index-checkpoint.ipynb', 'nbs/03_freezing-Copy1.ipynb',
                 'finetune_teach/weights/old.bin'):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text('{}')  # left lying about; must not be shipped
    # --no-isolation: the build tool of the development environment, so that no network is needed
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy], check=True,
                          capture_output=True, text=True)
    assert 'absent from' not in done.stdout + done.stderr, 'setuptools doubts what is a package'
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


def test_wheel_holds_the_module_and_its_weights(wheel):
    names = zipfile.ZipFile(wheel[0]).namelist()
    modules = {p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob('*.py')}
    weights = {f'finetune_teach/weights/{name}_resnet.safetensors' for name in ('tiny', 'drawn')}
    scripts = {p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob('*.js')}
    assert scripts and modules | weights | scripts <= set(names)
    assert not [n for n in names if n.startswith(('nbs/', 'tests/')) or n.endswith('old.bin')]


def test_wheel_and_source_distribution_hold_the_notebooks_once(wheel):
    names = zipfile.ZipFile(wheel[0]).namelist()
    images = [f'images/{p.name}' for p in (ROOT / 'nbs/images').iterdir()]
    expected = sorted([*images, *(p.relative_to(ROOT / 'nbs').as_posix() for p in NOTEBOOKS)])
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
    code = ('import sys; sys.path.insert(0, "site"); from finetune_teach.tools.command_line import main; '
            'from finetune_teach.tools.course_writer import notebooks_folder; '
            'assert notebooks_folder().as_posix().endswith("site/finetune_teach/notebooks"); '
            'sys.exit(main(["notebooks", "my course"]))')
    result = subprocess.run([sys.executable, '-I', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = {p.relative_to(tmp_path / 'my course').as_posix() for p in (tmp_path / 'my course').rglob('*.ipynb')}
    assert written == {p.relative_to(ROOT / 'nbs').as_posix() for p in NOTEBOOKS}


def test_readme_names_every_notebook():
    named = re.findall(r'\(nbs/([\w/]+\.ipynb)', (ROOT / 'README.md').read_text('utf-8'))
    assert {*named, 'index.ipynb'} == {p.relative_to(ROOT / 'nbs').as_posix() for p in NOTEBOOKS}
