"""finetune_teach beside fastai, timm and a bare PyTorch loop: time and memory, measured in turn.

    python benchmarks/compare.py --fastai PYTHON_OF_THE_OTHER_ENVIRONMENT

The sides are processes (`worker.py`) that wait while another one works. For each thing that is
measured they take turns, round by round, in changing order. Results go to results.md, .json and .png."""
import argparse
import datetime
import itertools
import json
import os
import platform
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
OURS, FASTAI, TIMM, BARE = 'finetune_teach', 'fastai', 'timm', 'bare loop'
OTHERS = FASTAI, TIMM, BARE
BATCH_SIZE = 32

# What is measured: a method of `worker.py`'s sides, and its options.
THINGS = {
    'opening': [('first_batch', {}), ('first_epoch', {})],
    'frozen': [('frozen_epochs', {})],
    'train_bn': [('frozen_epochs', {'train_bn': False})],
    'unfrozen': [('unfrozen_epoch', {})],
    'crops': [('crops', {})],
    'validation': [('validation', {})],
    'lr_find': [('lr_find', {'frozen': True, 'steps': 100}), ('lr_find', {'frozen': False, 'steps': 25})],
    'fine_tune': [('fine_tune', {})],
}
SHORT = ['opening', 'frozen', 'unfrozen', 'crops', 'validation']
QUICK = [*SHORT, 'lr_find']
QUICK_STEPS = 6  # of lr_find; no side takes fewer
GROWTH = {'pictures': (200, 2000, 20000), 'classes': (2, 10, 100, 1000)}  # tiny_resnet, one run each
NETWORKS = {  # pixels, and what is measured unless --only says something else
    'tiny_resnet': (64, [thing for thing in THINGS if thing != 'train_bn']),
    'resnet18': (128, list(THINGS)),
    'mobilenet_v3_small': (128, SHORT),
    'convnext_tiny': (96, SHORT),
}
WITHOUT = {  # things that a side has not
    BARE: ('opening', 'train_bn', 'crops', 'lr_find'),
    TIMM: ('frozen', 'train_bn', 'lr_find', 'fine_tune')}
NOT_NOTICED = 0.1  # seconds; a shorter wait seems to be none
GOALS = {  # (part, row): the highest ratio that finetune_teach may have to another side
    ('import', 'import'): {BARE: 1.10},
    ('resnet18', 'folder to the first batch'): {FASTAI: 1.0},
    ('resnet18', 'first frozen epoch'): {FASTAI: 0.40},
    ('resnet18', 'second frozen epoch'): {FASTAI: 0.20},
    ('resnet18', 'unfrozen epoch'): {FASTAI: 0.65, BARE: 0.85},
    ('resnet18', 'lr_find frozen, 100 steps'): {FASTAI: 0.05},
    ('resnet18', 'lr_find unfrozen, 25 steps'): {FASTAI: 0.75},
    ('resnet18', 'peak memory of fine_tune(4)'): {FASTAI: 1.0},
    **{('pictures', f'{n} pictures: folder to the first batch'): {FASTAI: 1.0}
       for n in GROWTH['pictures']},
}
IMPORTS = {OURS: 'finetune_teach.all', FASTAI: 'fastai.vision.all', TIMM: 'timm',
           BARE: 'torch, torchvision'}


class WorkerFailed(Exception):
    "A worker answered with an error, ended, or did not answer in time."


class Worker:
    "A process of `worker.py`, or of another command that speaks as it does."
    def __init__(self, command, threads=2, timeout=1800):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        self.timeout, self.answers, self.errors = timeout, queue.Queue(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': str(threads)})
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)  # it has ended

    def ask(self, do, **options):
        "Have something done; the answer as a dictionary."
        try:
            print(json.dumps({'do': do, 'options': options}), file=self.process.stdin, flush=True)
            answer = self.answers.get(timeout=self.timeout)
        except OSError:
            answer = None
        except queue.Empty:
            self.close()
            raise WorkerFailed(f'no answer to {do} within {self.timeout} seconds') from None
        if answer is None:
            self.close()
            self.errors.seek(0)
            last = self.errors.read().decode(errors='replace').strip()[-500:]
            raise WorkerFailed(f'it ended during {do}: {last}')
        answer = json.loads(answer)
        if 'error' in answer:
            raise WorkerFailed(answer['error'].strip())
        return answer

    def close(self):
        self.process.kill()
        self.process.wait()


class Comparison:
    "Has things done by all sides in turn, and keeps the numbers."
    def __init__(self, pythons, rounds, threads, timeout=1800):
        self.pythons, self.rounds = pythons, rounds  # {side: its python}
        self.threads, self.timeout = threads, timeout
        self.numbers, self.failures = {}, []  # {(part, row): {side: [number]}}
        self.versions, self.num_workers = {}, {}

    def start(self, side, **options):
        worker = Worker([self.pythons[side], str(HERE / 'worker.py'), side, str(self.threads)],
                        self.threads, self.timeout)
        try:
            self.versions[side] = worker.ask('start', **options)
        except WorkerFailed:
            worker.close()
            raise
        return worker

    def in_turn(self, part, sides, measure, rounds=None, warm_up=0):
        "Call `measure(side)`, which gives {row: number}, round by round; the first may not count."
        sides = list(sides)
        for i in range(-warm_up, rounds or self.rounds):
            first = i % len(sides) if sides else 0
            for side in sides[first:] + sides[:first]:
                try:
                    rows = measure(side)
                except WorkerFailed as failure:
                    self.fail(part, side, failure)
                    sides.remove(side)
                    continue
                for row, number in rows.items() if i >= 0 else ():
                    self.numbers.setdefault((part, row), {}).setdefault(side, []).append(number)
                    print(f'{part}: {row}: {side} {number:.3f}', flush=True)
                time.sleep(0.2)  # threads that wait for more work have given up by then

    def fail(self, part, side, failure):
        lines = str(failure).splitlines()
        self.failures.append(f'{part}, {side}: {lines[-1]}')
        print(f'FAILED: {part}, {side}: {failure}', flush=True)

    def once(self, side, do, start, **options):
        "Have one thing done by a new process."
        worker = self.start(side, **start)
        try:
            return worker.ask(do, **options)
        finally:
            worker.close()

    def imports(self):
        "Seconds for the import alone, each time in a new process; modules are compiled once, as pip does."
        environment = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
        def measure(side):
            code = (f'import time; start = time.perf_counter(); import {IMPORTS[side]}; '
                    'print(time.perf_counter() - start)')
            done = subprocess.run([self.pythons[side], '-c', code], capture_output=True, text=True,
                                  env={**environment, 'PYTHONPATH': str(ROOT)}, timeout=self.timeout)
            if done.returncode:
                raise WorkerFailed(done.stderr.strip() or f'import {IMPORTS[side]} failed')
            return {'import': float(done.stdout)}
        self.in_turn('import', self.pythons, measure, warm_up=1)

    def start_options(self, arch, folder):
        "What each side has to know: {side: options}; fastai and timm get the quicker `num_workers`."
        start = {'folder': str(folder), 'arch': arch, 'size': NETWORKS[arch][0],
                 'batch_size': BATCH_SIZE, 'workers': 0}
        for side in {FASTAI, TIMM} & self.pythons.keys():
            if (side, arch) not in self.num_workers:
                try:
                    seconds = self.once(side, 'quicker_workers', start)
                    print(f'{side}, an unfrozen epoch by num_workers: {seconds}', flush=True)
                    self.num_workers[side, arch] = int(min(seconds, key=seconds.get))
                except WorkerFailed as failure:
                    self.fail(f'{arch}, num_workers', side, failure)
        return {side: {**start, 'workers': self.num_workers.get((side, arch), 0)}
                for side in self.pythons}

    def network(self, arch, folder, things, quick=False):
        "All `things` of one network; `fine_tune` in a new process each time."
        start, workers = self.start_options(arch, folder), {}
        for side in self.pythons:
            try:
                workers[side] = self.start(side, **start[side])
                workers[side].ask('prepare')
            except WorkerFailed as failure:
                self.fail(arch, side, failure)
                workers.pop(side, None)
        for thing in things:
            sides = [side for side in workers if thing not in WITHOUT.get(side, ())]
            for do, options in THINGS[thing]:
                if quick and 'steps' in options:
                    options = {**options, 'steps': QUICK_STEPS}
                def measure(side):
                    if thing == 'fine_tune':
                        return self.once(side, do, start[side])
                    return workers[side].ask(do, **options)
                warm_up = int(thing in SHORT)  # the others run the same code, or are new processes
                self.in_turn(arch, sides, measure, warm_up=warm_up)
        for worker in workers.values():
            worker.close()

    def growth(self, part, row, start):
        "One run of each side, each in a new process; `row` says on which pictures."
        def measure(side):
            rows = self.once(side, 'growth', start[side])
            return {f'{row}: {name}': number for name, number in rows.items()}
        self.in_turn(part, [side for side in self.pythons if side != BARE], measure, rounds=1)


def drawn_photos(folder, n, size):
    "Draw `n` pets or a few more, save them as JPEG, and list them as (class, file), classes mixed."
    from PIL import Image
    from finetune_teach.engine.drawing import BREEDS, draw_pets
    folder.mkdir()
    each = -(-n // len(BREEDS))
    pictures, labels = draw_pets(each, seed=0, size=size)
    found = []
    for i in sorted(range(len(labels)), key=lambda i: (i % each, i)):
        found.append((f'breed_{labels[i]:02}', folder / f'{i:05}.jpg'))
        Image.fromarray(pictures[i]).save(found[-1][1], quality=90)
    return found


def own_photos(folder):
    "The photos of a folder with a folder for each class (or train and valid) as (class, file), mixed."
    root = folder / 'train' if (folder / 'train').is_dir() else folder
    kinds = {'.jpg', '.jpeg', '.png', '.bmp', '.webp'}
    classes = [[(sub.name, file) for file in sorted(sub.rglob('*')) if file.suffix.lower() in kinds]
               for sub in sorted(root.iterdir()) if sub.is_dir()]
    rows = itertools.zip_longest(*classes)
    return [photo for row in rows for photo in row if photo]


def arrange(photos, folder, n_train, n_valid):
    "Link photos, given as (class, file), into folder/train/class and folder/valid/class."
    n_train -= n_train % BATCH_SIZE  # fastai leaves out a last batch that is not full
    if n_train < BATCH_SIZE or len(photos) < n_train + n_valid:
        raise SystemExit(f'{len(photos)} photos: {n_train} to train, in full batches of {BATCH_SIZE}, '
                         f'and {n_valid} to validate are wanted; see --pictures')
    for i, (name, file) in enumerate(photos[:n_train + n_valid]):
        place = folder / ('train' if i < n_train else 'valid') / name
        place.mkdir(parents=True, exist_ok=True)
        target = place / f'{i:06}{file.suffix.lower()}'
        try:
            os.link(file, target)
        except OSError:  # on another disk
            shutil.copy(file, target)
    return folder


def many_photos(photos, folder, n, n_classes):
    "A folder of `n` pictures in `n_classes` classes, made of fewer photos by repetition."
    repeated = [(f'class_{i % n_classes:04}', photos[i % len(photos)][1]) for i in range(n)]
    n_train = n * 4 // 5 // BATCH_SIZE * BATCH_SIZE
    return arrange(repeated, folder, n_train, n - n_train)


def machine():
    "The machine and the system, without names."
    cpu = platform.processor() or platform.machine()
    memory = ''
    if sys.platform == 'linux':
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next((l.split(':')[1].strip() for l in lines if l.startswith('model name')), cpu)
        pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        memory = f', {pages / 2**30:.0f} GB memory'
    return f'{os.cpu_count()} cores ({cpu}){memory}, {platform.system()}'


def spread(values):
    return {'median': statistics.median(values), 'low': min(values), 'high': max(values)}


def make_rows(numbers):
    "The rows of the table: numbers of each side, and ratios to the others, pair by pair of a round."
    rows = []
    for (part, row), sides in numbers.items():
        ratios = {}
        for other in OTHERS:
            ours, theirs = sides.get(OURS, []), sides.get(other, [])
            if ours and len(ours) == len(theirs):
                ratios[other] = spread([a / b for a, b in zip(ours, theirs)])
        rows.append({'part': part, 'row': row, 'unit': 'MB' if 'memory' in row else 's',
                     'numbers': sides, 'ratios': ratios, 'goals': GOALS.get((part, row), {})})
    return rows


def number_text(values, unit):
    if not values:
        return ''
    digits = 0 if unit == 'MB' else 2 if max(values) >= 1 else 3
    text = f'{statistics.median(values):.{digits}f}'
    if len(values) > 1:
        text += f' ({min(values):.{digits}f} to {max(values):.{digits}f})'
    return f'{text} {unit}'


def ratio_text(row, other):
    ratio, goal = row['ratios'].get(other), row['goals'].get(other)
    if not ratio:
        return ''
    text = f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"
    if goal:
        text += f", goal {goal:g}{'' if ratio['median'] <= goal else ': missed'}"
    return text


def notice(row):
    "What somebody who changes from fastai notices of a row."
    ours, theirs = (row['numbers'].get(side, []) for side in (OURS, FASTAI))
    if not ours or not theirs:
        return ''
    saved = statistics.median(theirs) - statistics.median(ours)
    if row['unit'] == 'MB':
        return f"{abs(saved):.0f} MB {'less' if saved > 0 else 'more'}"
    if abs(saved) <= NOT_NOTICED:
        return 'nothing'
    return f"{abs(saved):.1f} s {'saved' if saved > 0 else 'lost'}"


def table(results):
    "results.md: one table for each part."
    about = results['about']
    lines = ['# Results', '', f"{about['date']}; {about['machine']}; {about['threads']} threads; "
             f"{about['rounds']} rounds; {about['photos']}; batches of {BATCH_SIZE}; fp32 on the CPU.", '',
             f"`{about['command']}`, {about['minutes']:.0f} minutes. Numbers are medians, with the lowest "
             'and highest; ratios are finetune_teach to the other, round by round, then their median, '
             'lowest and highest: below 1 finetune_teach is quicker, or needs less. The last column says '
             f'what somebody who changes from fastai notices; {NOT_NOTICED} s or less is nothing.', '',
             'How it was measured: [README.md](README.md); all numbers: results.json.', '',
             '![Ratios of each thing measured](results.png)', '']
    for side, found in results['versions'].items():
        lines.append(f'- {side}: ' + ', '.join(f'{name} {v}' for name, v in found.items()))
    if about['num_workers']:
        lines.append('- num_workers, the quicker of 0 and a process per core: ' + ', '.join(
            f'{where} {n}' for where, n in about['num_workers'].items()))
    for part, rows in itertools.groupby(results['rows'], key=lambda row: row['part']):
        pixels = f' at {NETWORKS[part][0]} pixels' if part in NETWORKS else ''
        lines += ['', f'## {part}{pixels}', '',
                  '| what | finetune_teach | fastai | timm | bare loop | to fastai | to timm '
                  '| to the bare loop | you notice |', '|---|---|---|---|---|---|---|---|---|']
        for row in rows:
            cells = [number_text(row['numbers'].get(side, []), row['unit']) for side in (OURS, *OTHERS)]
            cells += [*(ratio_text(row, other) for other in OTHERS), notice(row)]
            lines.append(f"| {row['row']} | " + ' | '.join(cells) + ' |')
    if results['failures']:
        lines += ['', '## Failed', '', *(f'- {failure}' for failure in results['failures'])]
    return '\n'.join(lines) + '\n'


def plot(results, path):
    "results.png: ratios in a panel for each network, a line at 1; below, how time and memory grow."
    from matplotlib.figure import Figure
    measured = [row for row in results['rows'] if row['ratios'] and row['part'] not in GROWTH]
    grown = [row for row in results['rows'] if row['part'] in GROWTH]
    heights = [2 + 0.36 * len({row['row'] for row in measured})] * bool(measured) + [3] * bool(grown)
    if not heights:
        return
    figure = Figure(figsize=(11, sum(heights)), layout='constrained', dpi=90)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if measured:
        plot_ratios(measured, parts.pop(0))
    if grown:
        plot_growth(grown, parts.pop(0))
    figure.savefig(path)


def plot_ratios(rows, figure):
    "A dot for each ratio; its line goes from the lowest to the highest."
    from finetune_teach.engine.plots import COLOURS, new_axes
    parts = list(dict.fromkeys(row['part'] for row in rows if row['part'] != 'import')) or ['import']
    names = list(dict.fromkeys(row['row'] for row in rows))
    panels = new_axes(len(parts), figure=figure, sharex=True, sharey=True, squeeze=False)[0]
    for part, ax in zip(parts, panels):
        ax.axvline(1, color='black', lw=1)
        for k, (other, marker) in enumerate(zip(OTHERS, 'ods')):
            shown = [(names.index(row['row']) + 0.24 * (k - 1), row['ratios'][other]) for row in rows
                     if other in row['ratios'] and row['part'] in (part, 'import' if ax is panels[0] else '')]
            for y, ratio in shown:
                ax.plot([ratio['low'], ratio['high']], [y, y], color=COLOURS[k], lw=1.5)
            ax.plot([r['median'] for _, r in shown], [y for y, _ in shown], marker, color=COLOURS[k],
                    label=f'to {other}')
        ax.set(xscale='log', xlabel='ratio', yticks=range(len(names)), yticklabels=names)
        ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
                 if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
        ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_title(part, fontsize=10)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncol=3, frameon=False)
    ratios = {other: [r['ratios'][other]['median'] for r in rows if other in r['ratios']]
              for other in OTHERS}
    found = ', '.join(f'than {other} in {sum(r < 1 for r in values)} of {len(values)}'
                      for other, values in ratios.items() if values)
    figure.suptitle(f'Left of the line finetune_teach takes less time or memory: {found} rows', fontsize=11)


def plot_growth(rows, figure):
    "Seconds of a frozen epoch and peak memory, by number of pictures and of classes."
    from finetune_teach.engine.plots import COLOURS, new_axes
    titles = {'first frozen epoch': 'seconds of a frozen epoch',
              'peak memory, first frozen epoch': 'its peak memory in MB'}
    panels = [(part, name) for part in GROWTH for name in titles
              if any(row['part'] == part for row in rows)]
    for (part, name), ax in zip(panels, new_axes(len(panels), figure=figure, squeeze=False)[0]):
        for side, marker, colour in ((OURS, '^', COLOURS[2]), (FASTAI, 'o', COLOURS[0])):
            points = [(int(row['row'].split()[0]), row['numbers'][side][0]) for row in rows
                      if row['part'] == part and row['row'].endswith(f': {name}') and side in row['numbers']]
            if points:
                ax.plot(*zip(*points), f'{marker}-', color=colour, label=side)
        ax.set(xscale='log', xlabel=part, ylim=(0, None))
        ax.set_title(titles[name], fontsize=10)
    ax.legend(fontsize=8)


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--fastai', help='python of an environment with fastai 2.8; left out: without it')
    add('--timm', action='store_true', help='with timm, which this environment has to have')
    add('--photos', type=Path, help='folder with a folder of photos per class; default: drawn')
    add('--pictures', type=int, help='training pictures, 128 (quick: 96); half as many validate')
    add('--networks', nargs='+', choices=NETWORKS, help='default: all (quick: the first two)')
    add('--only', nargs='+', choices=['import', *THINGS, *GROWTH], help='measure only these')
    add('--rounds', type=int, help='rounds that count, 5 (quick: 2)')
    add('--threads', type=int, default=2, help="PyTorch's, on each side")
    add('--timeout', type=float, default=1800, help='seconds that one measurement may take')
    add('--out', type=Path, default=HERE, help='folder for the results')
    add('--quick', action='store_true', help='a test of the command: fewer pictures, rounds and networks')
    args = parser.parse_args(words)
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.pictures = args.pictures or (96 if args.quick else 128)
    args.networks = args.networks or list(NETWORKS)[:2 if args.quick else None]
    args.words = sys.argv[1:] if words is None else words
    return args


def things_of(arch, args):
    "What is measured of a network."
    wanted = args.only or (QUICK if args.quick else NETWORKS[arch][1])
    return [thing for thing in THINGS if thing in wanted and (args.fastai or thing != 'train_bn')]


def measure_all(run, args, temporary):
    "All that was asked for; the numbers are in `run` afterwards."
    n_train, n_valid = args.pictures, args.pictures // 2
    if args.photos:
        photos = own_photos(args.photos)
    else:
        photos = drawn_photos(temporary / 'drawn', n_train + n_valid, 256)
    folder = arrange(photos, temporary / 'photos', n_train, n_valid)
    if 'import' in (args.only or ['import']):
        run.imports()
    for arch in args.networks:
        if things := things_of(arch, args):
            run.network(arch, folder, things, quick=args.quick)
    grown = [part for part in GROWTH if part in (args.only or ([] if args.quick else GROWTH))]
    if grown and not args.photos:
        photos = drawn_photos(temporary / 'small', 480, 64)
    for part in grown:
        for number in GROWTH[part]:
            n, n_classes = (number, 10) if part == 'pictures' else (2000, number)
            place = many_photos(photos, temporary / f'{part}_{number}', n, n_classes)
            run.growth(part, f'{number} {part}', run.start_options('tiny_resnet', place))
            shutil.rmtree(place)


def main(words=None):
    args, began = parse(words), time.perf_counter()
    pythons = {OURS: sys.executable, FASTAI: args.fastai, TIMM: args.timm and sys.executable,
               BARE: sys.executable}
    pythons = {side: python for side, python in pythons.items() if python}
    run = Comparison(pythons, args.rounds, args.threads, args.timeout)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            measure_all(run, args, Path(temporary))
        except KeyboardInterrupt:  # nothing that was measured is lost
            run.failures.append('the rest: stopped by Ctrl-C')
    photos = 'photos' if args.photos else 'drawn, JPEG of 256 pixels'
    about = {'date': datetime.date.today().isoformat(), 'machine': machine(), 'threads': args.threads,
             'rounds': args.rounds, 'command': command_text(args.words),
             'num_workers': {f'{side}, {arch}': n for (side, arch), n in run.num_workers.items()},
             'photos': f'{args.pictures} training and {args.pictures // 2} validation pictures, {photos}',
             'minutes': (time.perf_counter() - began) / 60}
    write({'about': about, 'versions': run.versions, 'rows': make_rows(run.numbers),
           'failures': run.failures}, args.out)
    return 1 if run.failures or not run.numbers else 0


def write(results, folder):
    "results.json, results.md and results.png."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    (folder / 'results.md').write_text(table(results))
    plot(results, folder / 'results.png')
    print(f'\n{table(results)}')


def command_text(words):
    "The command without folders of this machine."
    words = [Path(word).name if os.sep in word else word for word in words]
    return ' '.join(['python benchmarks/compare.py', *words])


if __name__ == '__main__':
    sys.exit(main())
